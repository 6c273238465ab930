// SPDX-License-Identifier: MIT
//
// Directories of UCM's uc-manager: <3 hex>/<32 hex> or data/..., raw files without any header.
#pragma once

#include <string>

namespace ucm {

// Throws where a directory without .ucm/format is one of uc-manager's. Lists next to nothing of it.
void refuse_older_blocks(const std::string &directory);

}  // namespace ucm
