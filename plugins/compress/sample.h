// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

namespace ucm::compress {

// Calls visit(start) for runs of `run` out of n that are spread evenly, each shifted by another
// part of a run: rows of heads would otherwise be met at the same channels only. Starts are
// multiples of `unit`; n is at least two runs.
template <typename F>
void each_run(size_t n, size_t run, size_t runs, size_t unit, F visit) {
    const size_t step = (n - 2 * run) / runs / unit * unit;
    for (size_t r = 0; r < runs; r++) visit(r * step + r * 37 % (run / unit) * unit);
}

}  // namespace ucm::compress
