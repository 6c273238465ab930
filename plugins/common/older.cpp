// SPDX-License-Identifier: MIT
#include "older.h"

#include <sys/stat.h>

#include "files.h"
#include "ucm/store_v1.hpp"

namespace ucm {
namespace {

constexpr const char *kFiles[] = {".ucm_gc.config", ".ucm_gc.cfglock", ".ucm_gc.lock"};
// It makes all 4,096 when it opens: a few tell, and no listing is needed.
constexpr const char *kFolders[] = {"000", "555", "aaa", "fff"};
constexpr int kNames = 16;

bool exists(const std::string &path, mode_t kind = 0) {
    struct stat st{};
    return ::lstat(path.c_str(), &st) == 0 && (kind == 0 || (st.st_mode & S_IFMT) == kind);
}

bool has_folders(const std::string &top) {
    for (const char *name : kFolders)
        if (!exists(top + "/" + name, S_IFDIR)) return false;
    return !exists(top + "/space");  // else a space of ours
}

bool is_block_name(std::string name) {
    if (name.size() == 36 && name.compare(32, 4, ".tmp") == 0) name.resize(32);
    return name.size() == 32 && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// Nothing but files that are named as blocks, by the first few.
bool has_blocks(const std::string &folder) {
    const Dir dir(opendir(folder.c_str()), closedir);
    int seen = 0;
    while (const dirent *entry = dir && seen < kNames ? readdir(dir.get()) : nullptr) {
        const std::string name = entry->d_name;
        if (name == "." || name == "..") continue;
        if (!is_block_name(name) || !exists(folder + "/" + name, S_IFREG)) return false;
        seen++;
    }
    return seen > 0;
}

bool is_older(const std::string &directory) {
    for (const char *name : kFiles)
        if (exists(directory + "/" + name)) return true;
    const std::string data = directory + "/data";
    return has_folders(directory) || has_folders(data) || has_blocks(data);
}

}  // namespace

void refuse_older_blocks(const std::string &directory) {
    if (is_older(directory))
        throw Error(UCM_INCOMPATIBLE,
                    "storage_backends: " + directory +
                        " holds blocks of UCM's uc-manager, files without a header or checksums, "
                        "which can be neither read nor imported; name another directory, or a new "
                        "one in it");
}

}  // namespace ucm
