// SPDX-License-Identifier: MIT
//
// The C++ helper as a third party includes it.
#include "ucm/store_v1.hpp"

int main() {
    return ucm::forks().load() != 0;
}
