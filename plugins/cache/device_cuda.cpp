// SPDX-License-Identifier: MIT
#include <dlfcn.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "cuda_driver.h"
#include "device_kinds.h"

namespace ucm::cache {
namespace {

// Copies of one direction that run at once; more threads wait. A device has one or two engines for
// each direction, and a second stream is submitted to while the first is waited for.
constexpr int kStreams = 4;

struct Driver {
#define UCM_CUDA_POINTER(name, ...) CUresult (*name)(__VA_ARGS__) = nullptr;
    UCM_CUDA_FUNCTIONS(UCM_CUDA_POINTER)
#undef UCM_CUDA_POINTER

    // "CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)"
    std::string explain(CUresult result) const {
        const char *name = nullptr, *text = nullptr;
        if (cuGetErrorName(result, &name) || !name) name = "unknown CUDA error";
        if (cuGetErrorString(result, &text) || !text) text = "no text";
        return name + std::string(" ") + std::to_string(result) + " (" + text + ")";
    }
};

[[noreturn]] void refuse(const std::string &what, const std::string &remedy) {
    throw Error(UCM_UNAVAILABLE, "memory: 'cuda' cannot be had: " + what + "; " + remedy);
}

template <typename F>
void find(void *library, const char *name, F *&function) {
    function = reinterpret_cast<F *>(dlsym(library, name));
    if (!function)
        refuse("libcuda.so.1 has no " + std::string(name), "install a driver for CUDA 11 or newer");
}

// Never closed: the driver has threads of its own.
Driver load_driver() {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *reason = dlerror();
        refuse(reason ? reason : "libcuda.so.1 cannot be opened",
               "install the NVIDIA driver (a container needs --gpus), or use memory: host");
    }
    Driver driver;
#define UCM_CUDA_FIND(name, ...) find(library, #name, driver.name);
    UCM_CUDA_FUNCTIONS(UCM_CUDA_FIND)
#undef UCM_CUDA_FIND
    return driver;
}

// What the driver's results mean to a caller.
ucm_status status_of(CUresult result) {
    return result == UCM_CUDA_ERROR_OUT_OF_MEMORY ? UCM_UNAVAILABLE : UCM_IO;
}

CUevent event_of(uint64_t handle) {
    return reinterpret_cast<CUevent>(uintptr_t(handle));
}

// The calling thread's current context, for a scope; callers keep their own.
class Current {
  public:
    Current(const Driver &driver, CUcontext context)
        : driver_(driver), result_(driver.cuCtxPushCurrent_v2(context)) {}
    ~Current() {
        CUcontext popped;
        if (!result_) driver_.cuCtxPopCurrent_v2(&popped);
    }
    Current(const Current &) = delete;
    CUresult result() const { return result_; }

  private:
    const Driver &driver_;
    const CUresult result_;
};

// The streams of one direction, each used by one thread at a time.
class Streams {
  public:
    explicit Streams(const Driver &driver) : driver_(driver) {}

    // Waits for one while all are taken. The context is current.
    CUresult take(CUstream &stream) {
        {
            std::unique_lock<std::mutex> lock(mutex_);
            free_.wait(lock, [&] { return !idle_.empty() || made_ < kStreams; });
            if (!idle_.empty()) {
                stream = idle_.back();
                idle_.pop_back();
                return CUresult(UCM_CUDA_SUCCESS);
            }
            made_++;
        }
        // Non-blocking: it does not wait for the default stream, nor is it waited for.
        const CUresult result = driver_.cuStreamCreate(&stream, UCM_CU_STREAM_NON_BLOCKING);
        if (result) forget();
        return result;
    }

    void give(CUstream stream) {
        const std::lock_guard<std::mutex> lock(mutex_);
        idle_.push_back(stream);
        free_.notify_one();
    }

    // Of a stream that is not given back.
    void forget() {
        const std::lock_guard<std::mutex> lock(mutex_);
        made_--;
        free_.notify_one();
    }

    void destroy() {
        for (CUstream stream : idle_) driver_.cuStreamDestroy_v2(stream);
        idle_.clear();
    }

  private:
    const Driver &driver_;
    std::mutex mutex_;  // guards all below
    std::condition_variable free_;
    std::vector<CUstream> idle_;
    int made_ = 0;
};

class CudaDevice final : public Device {
  public:
    CudaDevice(const ucm_layout &layout, const Logger &log);
    ~CudaDevice() override;

    ucm_status gather(const Piece *pieces, size_t n, uint64_t event) override {
        return copy(dumps_, pieces, n, event, [&](auto *slot, auto from, auto bytes, auto stream) {
            return driver_.cuMemcpyDtoHAsync_v2(slot, from, bytes, stream);
        });
    }

    ucm_status scatter(const Piece *pieces, size_t n, uint64_t event) override {
        return copy(loads_, pieces, n, event, [&](auto *slot, auto to, auto bytes, auto stream) {
            return driver_.cuMemcpyHtoDAsync_v2(to, slot, bytes, stream);
        });
    }

    void pin(uint8_t *base, uint64_t bytes) override;
    void unpin(uint8_t *base, uint64_t bytes) override;
    bool events() const override { return true; }
    bool late(uint64_t event) override;

  private:
    template <typename F>
    ucm_status copy(Streams &streams, const Piece *pieces, size_t n, uint64_t event, F move);
    template <typename F>
    ucm_status run(CUstream stream, const Piece *pieces, size_t n, uint64_t event, F move);
    ucm_status settled(CUstream stream, ucm_status status);
    void release_context();
    ucm_status failed(CUresult result, const char *what, int32_t level = UCM_LOG_ERROR);

    const Driver driver_;
    const Logger log_;
    const Segments segments_;
    CUdevice device_ = 0;
    CUcontext context_ = nullptr;
    Streams loads_{driver_}, dumps_{driver_};
    std::atomic<bool> lost_{false};  // a stream's end cannot be seen any more
    std::mutex mutex_;               // guards pinned_ and said_
    std::set<std::pair<uint8_t *, uint64_t>> pinned_;
    std::set<std::pair<std::string, int>> said_;
};

CudaDevice::CudaDevice(const ucm_layout &layout, const Logger &log)
    : driver_(load_driver()), log_(log), segments_(layout) {
    const auto need = [&](CUresult result, const char *what) {
        if (result)
            refuse(std::string(what) + " answers " + driver_.explain(result),
                   "see that nvidia-smi works here, or use memory: host");
    };
    need(driver_.cuInit(0), "cuInit");
    int count = 0;
    need(driver_.cuDeviceGetCount(&count), "cuDeviceGetCount");
    if (layout.device < 0 || layout.device >= count)
        refuse("device_id: " + std::to_string(layout.device) + " is not among the " +
                   std::to_string(count) + " CUDA devices that this process sees",
               "count from 0, and look at CUDA_VISIBLE_DEVICES");
    need(driver_.cuDeviceGet(&device_, layout.device), "cuDeviceGet");
    need(driver_.cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain");
}

// After a breakdown all is left as it is: what may still be copied needs stream, context and pins.
CudaDevice::~CudaDevice() {
    if (!lost_) release_context();
}

void CudaDevice::release_context() {
    {
        const Current current(driver_, context_);
        if (current.result()) return;
        loads_.destroy();
        dumps_.destroy();
        for (auto &range : pinned_) driver_.cuMemHostUnregister(range.first);
    }
    driver_.cuDevicePrimaryCtxRelease_v2(device_);
}

void CudaDevice::pin(uint8_t *base, uint64_t bytes) {
    const Current current(driver_, context_);
    CUresult result = current.result();
    if (!result)
        result = driver_.cuMemHostRegister_v2(base, bytes, UCM_CU_MEMHOSTREGISTER_PORTABLE);
    // Somebody else in this process has pinned it, and will unpin it.
    if (result == UCM_CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED) return;
    if (result) {
        failed(result, "pinning slots; copies are slower without", UCM_LOG_WARN);
        return;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    pinned_.emplace(base, bytes);
}

void CudaDevice::unpin(uint8_t *base, uint64_t bytes) {
    if (lost_) return;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!pinned_.erase({base, bytes})) return;
    }
    const Current current(driver_, context_);
    CUresult result = current.result();
    if (!result) result = driver_.cuMemHostUnregister(base);
    if (result) failed(result, "unpinning slots", UCM_LOG_WARN);
}

bool CudaDevice::late(uint64_t event) {
    if (lost_) return false;
    const Current current(driver_, context_);
    return !current.result() && driver_.cuEventQuery(event_of(event)) == UCM_CUDA_ERROR_NOT_READY;
}

template <typename F>
ucm_status CudaDevice::copy(Streams &streams, const Piece *pieces, size_t n, uint64_t event,
                            F move) {
    const Current current(driver_, context_);
    if (current.result()) return failed(current.result(), "entering the context");
    CUstream stream;
    if (const CUresult result = streams.take(stream)) return failed(result, "making a stream");
    const ucm_status status = run(stream, pieces, n, event, move);
    if (status == UCM_PENDING)
        streams.forget();
    else
        streams.give(stream);
    return status;
}

template <typename F>
ucm_status CudaDevice::run(CUstream stream, const Piece *pieces, size_t n, uint64_t event, F move) {
    if (lost_) return UCM_UNAVAILABLE;
    if (event) {
        const CUresult result = driver_.cuStreamWaitEvent(stream, event_of(event), 0);
        if (result == UCM_CUDA_ERROR_INVALID_HANDLE || result == UCM_CUDA_ERROR_INVALID_VALUE) {
            failed(result, "waiting for prerequisite_handle, which is no event of this device");
            return UCM_INVALID;
        }
        if (result) return failed(result, "waiting for prerequisite_handle");
    }
    ucm_status status = UCM_OK;
    for (size_t i = 0; i < n && status == UCM_OK; i++)
        segments_.each_part(pieces[i], [&](uint8_t *slot, void *address, uint64_t bytes) {
            const CUresult result = move(slot, CUdeviceptr(uintptr_t(address)), bytes, stream);
            if (result) status = failed(result, "starting a copy");
            return result == UCM_CUDA_SUCCESS;
        });
    return settled(stream, status);
}

// Returns when nothing runs on the stream any more, also when starting a copy failed: those before
// it run. Synchronizing may report what went wrong earlier; only success is an end.
ucm_status CudaDevice::settled(CUstream stream, ucm_status status) {
    CUresult result = driver_.cuStreamSynchronize(stream);
    if (!result) return status;
    if (status == UCM_OK) status = failed(result, "copying");
    result = driver_.cuStreamSynchronize(stream);
    if (!result) return status;
    lost_ = true;
    failed(result, "waiting for copies; the device is not used any more, restart this process");
    return UCM_PENDING;
}

// Says each error once, by the driver's name.
ucm_status CudaDevice::failed(CUresult result, const char *what, int32_t level) {
    bool is_new;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        is_new = said_.emplace(what, int(result)).second;
    }
    if (is_new)
        log_.write(level, "CUDA device %d, %s: %s", int(device_), what,
                   driver_.explain(result).c_str());
    return status_of(result);
}

}  // namespace

std::unique_ptr<Device> make_cuda_device(const ucm_layout &layout, const Logger &log) {
    return std::make_unique<CudaDevice>(layout, log);
}

}  // namespace ucm::cache
