// SPDX-License-Identifier: MIT
#pragma once

#include <sys/types.h>

#include <string>

namespace ucm {

// Who may read and write what a store makes in a directory, whatever the umask.
struct Access {
    Access() = default;
    // From the options file_mode and file_group. Throws where the group cannot be used.
    Access(const std::string &mode, const std::string &wanted_group);

    mode_t file = 0600, folder = 0700;
    gid_t group = gid_t(-1);  // -1: as it comes

    // Files made with mode 0600, and folders with 0700, are right as they are.
    bool plain = false;

    // Both return 0 or an errno. To be called before others can see the file.
    int apply(int fd) const;
    int make_folder(const std::string &path) const;
    // A new file; throws where it cannot be written.
    void write_file(const std::string &path, const std::string &text, bool sync) const;
};

// Up to `most` bytes of a file, whatever a call moves; 0 or an errno.
int read_file(const std::string &path, size_t most, std::string &out);

// Makes sure of the names in a folder; 0 or an errno. Some file systems cannot.
int sync_folder(const std::string &path);

// What to say of a path that was refused with this errno: whose it is, and what to do. "" where
// that would not help.
std::string who_owns(const std::string &path, int error);

}  // namespace ucm
