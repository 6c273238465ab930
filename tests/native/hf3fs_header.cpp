// SPDX-License-Identifier: MIT
//
// Where 3FS's own header is, what Ds3fs has declared by itself is compared with it. Compiled only.
#include <hf3fs_usrbio.h>

#include <type_traits>

#include "../../plugins/ds3fs/usrbio.h"

using namespace ucm::ds3fs;

#define SAME(ours, member, theirs, name)                              \
    static_assert(offsetof(ours, member) == offsetof(theirs, name) && \
                      sizeof(ours::member) == sizeof(theirs::name),   \
                  #name)

static_assert(sizeof(Iov) == sizeof(hf3fs_iov));
SAME(Iov, base, hf3fs_iov, base);
SAME(Iov, handle, hf3fs_iov, iovh);
SAME(Iov, id, hf3fs_iov, id);
SAME(Iov, mount_point, hf3fs_iov, mount_point);
SAME(Iov, size, hf3fs_iov, size);
SAME(Iov, block_size, hf3fs_iov, block_size);
SAME(Iov, numa, hf3fs_iov, numa);

static_assert(sizeof(Ior) == sizeof(hf3fs_ior));
SAME(Ior, iov, hf3fs_ior, iov);
SAME(Ior, handle, hf3fs_ior, iorh);
SAME(Ior, mount_point, hf3fs_ior, mount_point);
SAME(Ior, for_read, hf3fs_ior, for_read);
SAME(Ior, io_depth, hf3fs_ior, io_depth);
SAME(Ior, priority, hf3fs_ior, priority);
SAME(Ior, timeout, hf3fs_ior, timeout);
SAME(Ior, flags, hf3fs_ior, flags);

static_assert(sizeof(Cqe) == sizeof(hf3fs_cqe));
SAME(Cqe, index, hf3fs_cqe, index);
SAME(Cqe, reserved, hf3fs_cqe, reserved);
SAME(Cqe, result, hf3fs_cqe, result);
SAME(Cqe, userdata, hf3fs_cqe, userdata);

static_assert(kForbidReadHoles == HF3FS_IOR_FORBID_READ_HOLES);

// The same result, and argument by argument the same type or a pointer.
template <typename A, typename B>
constexpr bool kAlike = std::is_same_v<A, B> || (std::is_pointer_v<A> && std::is_pointer_v<B>);
template <typename R, typename... A, typename S, typename... B>
constexpr bool alike(R (*)(A...), S (*)(B...)) {
    static_assert(sizeof...(A) == sizeof...(B));
    return std::is_same_v<R, S> && (kAlike<A, B> && ...);
}
#define CALL(name) static_assert(alike(decltype(Library::name){}, decltype(&hf3fs_##name){}), #name)

CALL(extract_mount_point);
CALL(iovcreate);
CALL(iorcreate4);
CALL(iovdestroy);
CALL(iordestroy);
CALL(io_entries);
CALL(reg_fd);
CALL(dereg_fd);
CALL(prep_io);
CALL(submit_ios);
CALL(wait_for_ios);
