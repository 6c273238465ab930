// SPDX-License-Identifier: MIT
#include "usrbio.h"

#include <dlfcn.h>
#include <sys/resource.h>

#include <map>
#include <mutex>

#include "ucm/store_v1.hpp"

namespace ucm::ds3fs {
namespace {

constexpr uint64_t kMostFiles = 1u << 24;

template <typename F>
void find(void *handle, const char *name, F &function, std::string &missing) {
    const std::string symbol = std::string("hf3fs_") + name;
    function = reinterpret_cast<F>(dlsym(handle, symbol.c_str()));
    if (!function) missing += (missing.empty() ? "" : ", ") + symbol;
}

Library load(const std::string &name) {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_max = RLIM_INFINITY;
    if (const std::string why = Library::refusal(limit.rlim_max); !why.empty())
        throw Error(UCM_UNAVAILABLE, why);
    if (name.empty())
        throw Error(UCM_INVALID,
                    "ds3fs_library is empty; give the path of libhf3fs_api_shared.so, or leave it "
                    "out");
    // Its threads may run on; nothing of it is ever taken away.
    void *handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!handle)
        throw Error(UCM_UNAVAILABLE, "ds3fs_library: cannot open " + name + " (" + dlerror() +
                                         "); install the client library of 3FS, or give its path");
    Library library{};
    std::string missing;
    find(handle, "extract_mount_point", library.extract_mount_point, missing);
    find(handle, "iovcreate", library.iovcreate, missing);
    find(handle, "iorcreate4", library.iorcreate4, missing);
    find(handle, "iovdestroy", library.iovdestroy, missing);
    find(handle, "iordestroy", library.iordestroy, missing);
    find(handle, "io_entries", library.io_entries, missing);
    find(handle, "reg_fd", library.reg_fd, missing);
    find(handle, "dereg_fd", library.dereg_fd, missing);
    find(handle, "prep_io", library.prep_io, missing);
    find(handle, "submit_ios", library.submit_ios, missing);
    find(handle, "wait_for_ios", library.wait_for_ios, missing);
    if (!missing.empty())
        throw Error(UCM_UNAVAILABLE, "ds3fs_library: " + name + " has no " + missing +
                                         "; it is another library, or too old a version");
    return library;
}

}  // namespace

std::string Library::refusal(uint64_t hard_limit) {
    if (hard_limit <= kMostFiles) return "";
    const std::string now = hard_limit == RLIM_INFINITY ? "unlimited" : std::to_string(hard_limit);
    return "the hard limit of open files (RLIMIT_NOFILE) is " + now +
           ", and the library of 3FS makes a table of that size when it is opened; lower it to " +
           std::to_string(kMostFiles) +
           " or less: ulimit -Hn 1048576, LimitNOFILE=1048576 in a unit of systemd, or --ulimit "
           "nofile=1048576 of a container";
}

const Library &Library::open(const std::string &name) {
    static std::mutex mutex;  // guards opened
    static std::map<std::string, Library> opened;
    std::lock_guard<std::mutex> hold(mutex);
    auto found = opened.find(name);
    if (found == opened.end()) found = opened.emplace(name, load(name)).first;
    return found->second;
}

std::string id_text(const char (&id)[16]) {
    static const char digits[] = "0123456789abcdef";
    std::string text;
    for (size_t i = 0; i < sizeof id; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
        text += digits[uint8_t(id[i]) >> 4];
        text += digits[uint8_t(id[i]) & 15];
    }
    return text;
}

std::string iovs_folder(const std::string &mount_point) {
    return mount_point + "/3fs-virt/iovs";
}

}  // namespace ucm::ds3fs
