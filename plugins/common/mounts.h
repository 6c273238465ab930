// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace ucm {

// What the file system of a path is to those who share files there.
struct FileSystem {
    bool local = false;  // all who see it are on this machine, and see a change at once
    std::string
        private_locks;  // the mount option or type that keeps locks to this machine; "": none does
};

FileSystem file_system_of(const std::string &path);

}  // namespace ucm
