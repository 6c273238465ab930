// SPDX-License-Identifier: MIT
#include "device.h"

#include "device_kinds.h"

namespace ucm::cache {

std::unique_ptr<Device> make_device(const ucm_layout &layout, const Logger &log) {
    switch (layout.memory) {
        case UCM_MEMORY_HOST:
            return make_host_device(layout);
        case UCM_MEMORY_CUDA:
            return make_cuda_device(layout, log);
        default:
            throw Error(UCM_UNSUPPORTED, "layout.memory: kind " + std::to_string(layout.memory) +
                                             " is not known to Cache; it takes host and cuda");
    }
}

}  // namespace ucm::cache
