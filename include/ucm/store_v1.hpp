// SPDX-License-Identifier: MIT
//
// ucm/store_v1.hpp - write a StoreV1 plugin as one C++17 class and one macro.
//
// Header only and optional: the contract is ucm/store_v1.h, whose comments hold here too. The
// try/catch of the library lives here: methods may throw, nothing leaves the plugin. See examples/
// for a whole one.
//
//     class Null final : public ucm::Store {
//       public:
//         explicit Null(const ucm_open_args &args);   // throw ucm::Error to refuse
//         uint64_t capabilities() const override { return 0; }
//         ...
//     };
//     UCM_STORE_PLUGIN(Null, "Null", "0.1.0", "Forgets everything.", 0, kOptions, kMetrics)
#ifndef UCM_STORE_V1_HPP
#define UCM_STORE_V1_HPP

#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "ucm/store_v1.h"

// For what holds state: a static of an inline function is one for the whole process otherwise, even
// where plugins built with two versions of this file are opened with RTLD_LOCAL.
#define UCM_HIDDEN __attribute__((visibility("hidden")))

namespace ucm {

// A refusal with its reason; becomes the ucm_error of the call.
class Error : public std::exception {
  public:
    Error(ucm_status status, std::string message, int os_errno = 0)
        : status_(status), os_errno_(os_errno), message_(std::move(message)) {}
    const char *what() const noexcept override { return message_.c_str(); }
    ucm_status status() const noexcept { return status_; }
    int os_errno() const noexcept { return os_errno_; }

  private:
    ucm_status status_;
    int os_errno_;
    std::string message_;
};

// The option values of one open, in the order of the plugin's table.
class Values {
  public:
    Values(const ucm_value *values, size_t n, size_t stride)
        : first_(values), n_(n), stride_(stride) {}
    explicit Values(const ucm_open_args &a) : Values(a.values, a.n_values, a.value_stride) {}
    explicit Values(const ucm_layout_args &a) : Values(a.values, a.n_values, a.value_stride) {}
    const ucm_value &operator[](size_t i) const {
        if (i >= n_) throw Error(UCM_INTERNAL, "option index out of range");
        return *UCM_AT(ucm_value, first_, stride_, i);
    }

  private:
    const ucm_value *first_;
    size_t n_, stride_;
};

inline ucm_result result(ucm_status status, uint64_t length = 0, int os_errno = 0,
                         uint32_t flags = 0) {
    return ucm_result{sizeof(ucm_result), status, os_errno, flags, 0, length};
}

// Counts forks, so that a store can tell that it is in a child process.
UCM_HIDDEN inline const std::atomic<uint64_t> &forks() {
    static std::atomic<uint64_t> count{0};
    static const int registered =
        pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1, std::memory_order_relaxed); });
    (void)registered;
    return count;
}

// One open store. Methods have the meaning, and the thread rules, of the slots of ucm_store_ops.
class Store {
  public:
    virtual ~Store() = default;

    virtual uint64_t capabilities() const = 0;
    virtual ucm_status lookup(const ucm_lookup_args &, ucm_error *) = 0;
    virtual ucm_status load(const ucm_transfer &, ucm_task *, ucm_error *) = 0;
    virtual ucm_status dump(const ucm_transfer &, ucm_task *, ucm_error *) = 0;
    virtual ucm_status cancel(ucm_task, ucm_error *err) { return unsupported(err, "cancel"); }
    virtual ucm_status prefetch(const ucm_ids_args &, ucm_error *) { return UCM_OK; }
    virtual ucm_status touch(const ucm_ids_args &, ucm_error *) { return UCM_OK; }
    virtual ucm_status remove(const ucm_ids_args &, ucm_error *err) {
        return unsupported(err, "remove");
    }
    virtual ucm_status drain(const ucm_wait_args &, ucm_report &, ucm_error *) = 0;
    virtual ucm_status metrics(const ucm_metrics_args &, ucm_error *) { return UCM_OK; }
    virtual ucm_status register_memory(const ucm_memory_args &, ucm_error *) { return UCM_OK; }
    // The object is deleted after the call, unless the answer is UCM_PENDING, or UCM_INVALID or
    // UCM_UNSUPPORTED: nothing happened.
    virtual ucm_status close(const ucm_wait_args &, ucm_report &, ucm_error *) = 0;

    // Bits 1 << UCM_MEMORY_*. Shadow it in a class that takes layouts of other memory too.
    static constexpr uint64_t kMemories = uint64_t(1) << UCM_MEMORY_HOST;

    // Shadow it in a layer that moves other sizes, or memory of its own, below.
    static void lower_layout(const ucm_layout_args &, ucm_layout &) {}

  private:
    static ucm_status unsupported(ucm_error *err, const char *what) {
        return ucm_fail(err, UCM_UNSUPPORTED, 0,
                        (std::string("this store cannot ") + what).c_str());
    }
};

namespace detail UCM_HIDDEN {

struct Handle {
    ucm_store base{};
    std::unique_ptr<Store> store;
    uint64_t forks;
};

inline ucm_status caught(ucm_error *err) noexcept {
    try {
        throw;
    } catch (const Error &e) {
        return ucm_fail(err, e.status(), e.os_errno(), e.what());
    } catch (const std::bad_alloc &) {
        return ucm_fail(err, UCM_UNAVAILABLE, ENOMEM, "out of memory");
    } catch (const std::exception &e) {
        return ucm_fail(err, UCM_INTERNAL, 0, e.what());
    } catch (...) {
        return ucm_fail(err, UCM_INTERNAL, 0, "unknown exception");
    }
}

template <typename F>
ucm_status call(ucm_store *s, ucm_error *err, F body) noexcept {
    auto *handle = reinterpret_cast<Handle *>(s);
    if (handle->forks != forks().load(std::memory_order_relaxed))
        return ucm_fail(err, UCM_INVALID, 0,
                        "this store was opened by the parent process; open it again");
    try {
        return body(*handle->store);
    } catch (...) {
        return caught(err);
    }
}

// What every class knows. These stay as they are: a class written before a flag came does not
// know it, whatever header it is compiled with.
constexpr uint64_t kTransferFlags = UCM_TRANSFER_EVENT | UCM_TRANSFER_REPLACE;
constexpr uint64_t kLayoutFlags = UCM_LAYOUT_PAGES;
constexpr uint64_t kOpenFlags = UCM_OPEN_LOOKUP_ONLY;

inline bool knows(uint64_t flags, uint64_t known) {
    return (flags & ~known) == 0;
}

inline ucm_status unknown_flags(ucm_error *err) {
    return ucm_fail(err, UCM_UNSUPPORTED, 0, "a flag of this call is not known to this store");
}

inline ucm_status lookup(ucm_store *s, const ucm_lookup_args *a, ucm_error *err) {
    if (!knows(a->flags, 0)) return unknown_flags(err);
    if (a->mode < UCM_LOOKUP_ALL || a->mode > UCM_LOOKUP_LAST)
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this mode of lookup is not known to this store");
    return call(s, err, [&](Store &store) { return store.lookup(*a, err); });
}
inline ucm_status load(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    if (!knows(t->flags, kTransferFlags)) return unknown_flags(err);
    return call(s, err, [&](Store &store) { return store.load(*t, task, err); });
}
inline ucm_status dump(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    if (!knows(t->flags, kTransferFlags)) return unknown_flags(err);
    return call(s, err, [&](Store &store) { return store.dump(*t, task, err); });
}
inline ucm_status cancel(ucm_store *s, ucm_task task, ucm_error *err) {
    return call(s, err, [&](Store &store) { return store.cancel(task, err); });
}
inline ucm_status prefetch(ucm_store *s, const ucm_ids_args *a, ucm_error *err) {
    if (!knows(a->flags, 0)) return unknown_flags(err);
    return call(s, err, [&](Store &store) { return store.prefetch(*a, err); });
}
inline ucm_status touch(ucm_store *s, const ucm_ids_args *a, ucm_error *err) {
    if (!knows(a->flags, 0)) return unknown_flags(err);
    return call(s, err, [&](Store &store) { return store.touch(*a, err); });
}
inline ucm_status remove(ucm_store *s, const ucm_ids_args *a, ucm_error *err) {
    if (!knows(a->flags, 0)) return unknown_flags(err);
    return call(s, err, [&](Store &store) { return store.remove(*a, err); });
}
inline ucm_status drain(ucm_store *s, const ucm_wait_args *a, ucm_report *r, ucm_error *err) {
    if (!knows(a->flags, 0)) return unknown_flags(err);
    ucm_report scratch{};
    scratch.struct_size = sizeof scratch;
    return call(s, err, [&](Store &store) { return store.drain(*a, r ? *r : scratch, err); });
}
inline ucm_status metrics(ucm_store *s, const ucm_metrics_args *a, ucm_error *err) {
    if (!knows(a->flags, 0)) return unknown_flags(err);
    return call(s, err, [&](Store &store) { return store.metrics(*a, err); });
}
inline ucm_status register_memory(ucm_store *s, const ucm_memory_args *a, ucm_error *err) {
    if (!knows(a->flags, 0)) return unknown_flags(err);
    if (a->release != 0 && a->release != 1)
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "register_memory: release is neither 0 nor 1");
    return call(s, err, [&](Store &store) { return store.register_memory(*a, err); });
}
inline ucm_status close(ucm_store *s, const ucm_wait_args *a, ucm_report *r, ucm_error *err) {
    if (!knows(a->flags, 0)) return unknown_flags(err);
    auto *handle = reinterpret_cast<Handle *>(s);
    if (handle->forks != forks().load(std::memory_order_relaxed))
        return ucm_fail(err, UCM_INVALID, 0, "this store was opened by the parent process");
    ucm_report scratch{};
    scratch.struct_size = sizeof scratch;
    ucm_status status =
        call(s, err, [&](Store &store) { return store.close(*a, r ? *r : scratch, err); });
    const bool stays = status == UCM_PENDING || status == UCM_INVALID || status == UCM_UNSUPPORTED;
    if (!stays) delete handle;
    return status;
}

inline const ucm_store_ops *ops() {
    static const ucm_store_ops table = {
        sizeof(ucm_store_ops), lookup, load, dump, cancel, prefetch, touch, remove, drain, metrics,
        register_memory,       close};
    return &table;
}

template <typename S>
ucm_status open(const ucm_open_args *args, ucm_store **out, ucm_error *err) {
    if (!knows(args->flags, kOpenFlags) ||
        (args->layout && !knows(args->layout->flags, kLayoutFlags)))
        return unknown_flags(err);
    try {
        auto handle = std::make_unique<Handle>();
        handle->forks = forks().load(std::memory_order_relaxed);
        handle->store = std::make_unique<S>(*args);
        handle->base.struct_size = sizeof(ucm_store);
        handle->base.ops = ops();
        handle->base.capabilities = handle->store->capabilities();
        if (!(args->flags & UCM_OPEN_LOOKUP_ONLY)) {
            handle->base.capacity = args->layout->capacity;
            handle->base.raw_capacity = args->layout->raw_capacity;
            handle->base.shards_per_block = args->layout->shards_per_block;
        }
        *out = &handle.release()->base;
        return UCM_OK;
    } catch (...) {
        return caught(err);
    }
}

template <typename S>
ucm_status lower_layout(const ucm_layout_args *args, ucm_layout *out, ucm_error *err) {
    if (!knows(args->flags, 0) || !knows(args->layout->flags, kLayoutFlags))
        return unknown_flags(err);
    try {
        S::lower_layout(*args, *out);
        return UCM_OK;
    } catch (...) {
        return caught(err);
    }
}

template <typename T, size_t N>
constexpr size_t count(const T (&)[N]) {
    return N;
}
constexpr size_t count(std::nullptr_t) {
    return 0;
}

}  // namespace detail UCM_HIDDEN
}  // namespace ucm

// options and metrics are arrays of ucm_option and ucm_metric with static lifetime, or nullptr.
#define UCM_STORE_PLUGIN(Class, name, version, summary, flags, options, metrics) \
    extern "C" UCM_EXPORT const ucm_plugin *ucm_store_plugin_v1(void) {          \
        static const ucm_plugin plugin = {sizeof(ucm_plugin),                    \
                                          UCM_ABI_MAJOR,                         \
                                          UCM_ABI_MINOR,                         \
                                          UCM_ABI_DRAFT,                         \
                                          0,                                     \
                                          flags,                                 \
                                          Class::kMemories,                      \
                                          name,                                  \
                                          version,                               \
                                          summary,                               \
                                          ucm::detail::count(options),           \
                                          sizeof(ucm_option),                    \
                                          options,                               \
                                          ucm::detail::count(metrics),           \
                                          sizeof(ucm_metric),                    \
                                          metrics,                               \
                                          ucm::detail::lower_layout<Class>,      \
                                          ucm::detail::open<Class>};             \
        return &plugin;                                                          \
    }

#endif  // UCM_STORE_V1_HPP
