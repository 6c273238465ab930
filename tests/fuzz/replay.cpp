// SPDX-License-Identifier: MIT
// Runs a target over the files of a folder, where libFuzzer is not: replay FOLDER
#include <filesystem>
#include <fstream>
#include <iterator>

#include "fuzz.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t *, size_t size, size_t) {
    return size;
}

int main(int argc, char **argv) {
    size_t files = 0;
    for (const auto &each : std::filesystem::directory_iterator(argc > 1 ? argv[1] : ".")) {
        std::ifstream file(each.path(), std::ios::binary);
        const fuzz::Bytes bytes{std::istreambuf_iterator<char>(file), {}};
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
        files++;
    }
    std::printf("%zu files\n", files);
    return files == 0;
}
