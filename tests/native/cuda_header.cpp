// SPDX-License-Identifier: MIT
//
// Compiles only if what Cache says about the CUDA driver is what cuda.h says.
#include <cuda.h>

#include <type_traits>

#include "../../plugins/cache/cuda_driver.h"

#define SAME_FUNCTION(name, ...) \
    static_assert(std::is_same_v<decltype(&name), CUresult (*)(__VA_ARGS__)>, #name);
UCM_CUDA_FUNCTIONS(SAME_FUNCTION)

#define SAME_VALUE(name) static_assert(int(UCM_##name) == int(name), #name)
SAME_VALUE(CUDA_SUCCESS);
SAME_VALUE(CUDA_ERROR_INVALID_VALUE);
SAME_VALUE(CUDA_ERROR_OUT_OF_MEMORY);
SAME_VALUE(CUDA_ERROR_INVALID_HANDLE);
SAME_VALUE(CUDA_ERROR_NOT_READY);
SAME_VALUE(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
SAME_VALUE(CU_STREAM_NON_BLOCKING);
SAME_VALUE(CU_MEMHOSTREGISTER_PORTABLE);
