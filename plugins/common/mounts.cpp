// SPDX-License-Identifier: MIT
#include "mounts.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

namespace ucm {
namespace {

constexpr unsigned kLocal[] = {
    0xEF53,      // ext2, ext3, ext4
    0x58465342,  // xfs
    0x9123683E,  // btrfs
    0xF2F52010,  // f2fs
    0x01021994,  // tmpfs
    0x858458f6,  // ramfs
    0x794c7630,  // overlay
    0x2FC12FC1,  // zfs
    0xca451a4e,  // bcachefs
};

// The options and type of the last mount with this device, which hides those before.
std::string mount_options(dev_t device) {
    std::ifstream file("/proc/self/mountinfo");
    const std::string wanted = std::to_string(major(device)) + ":" + std::to_string(minor(device));
    std::string line, found;
    while (std::getline(file, line)) {
        std::istringstream words(line);
        std::string number, parent, here, root, point, options, word, type, source, last;
        words >> number >> parent >> here >> root >> point >> options;
        if (here != wanted) continue;
        while (words >> word && word != "-") {
        }
        words >> type >> source >> last;  // of the file system itself
        found = options + "," + last + "," + type;
    }
    return found;
}

std::string private_locks(const std::string &options) {
    std::istringstream words(options);
    for (std::string word; std::getline(words, word, ',');)
        if (word == "nolock" || word == "local_lock=all" || word == "local_lock=posix" ||
            word == "fuse.hf3fs")  // 3FS has no locks, so the kernel keeps them
            return word;
    return "";
}

}  // namespace

FileSystem file_system_of(const std::string &path) {
    FileSystem found;
    struct statfs fs{};
    if (::statfs(path.c_str(), &fs) != 0) return found;
    found.local =
        std::find(std::begin(kLocal), std::end(kLocal), unsigned(fs.f_type)) != std::end(kLocal);
    struct stat st{};
    if (!found.local && ::stat(path.c_str(), &st) == 0)
        found.private_locks = private_locks(mount_options(st.st_dev));
    return found;
}

}  // namespace ucm
