// SPDX-License-Identifier: MIT
//
// The part of Duet that is worth C++: copying bytes without the GIL. Blocks live in memory; the
// oldest go first.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace py = pybind11;

namespace {

struct Part {
    char *data;
    size_t bytes;
};
using Row = std::vector<Part>;
using Ids = std::vector<std::string>;

// Borrowed for the call: whoever calls keeps the memory.
std::vector<Row> rows_of(const py::list &shards, std::vector<py::buffer_info> &keep) {
    std::vector<Row> rows;
    for (const py::handle shard : shards) {
        rows.emplace_back();
        for (const py::handle segment : shard) {
            keep.push_back(py::reinterpret_borrow<py::buffer>(segment).request());
            const py::buffer_info &info = keep.back();
            rows.back().push_back(
                {static_cast<char *>(info.ptr), size_t(info.size * info.itemsize)});
        }
    }
    return rows;
}

constexpr size_t kMostUnfinished = 1024;

class Core {
  public:
    Core(size_t shards_per_block, uint64_t limit)
        : shards_per_block_(shards_per_block), limit_(limit) {}

    std::vector<bool> lookup(const Ids &ids) {
        const std::lock_guard<std::mutex> hold(mutex_);
        std::vector<bool> answer;
        for (const std::string &id : ids) answer.push_back(published_.count(id) > 0);
        return answer;
    }

    // For each shard whether it found room.
    std::vector<bool> dump(const Ids &ids, const std::vector<uint32_t> &index,
                           const py::list &shards) {
        std::vector<py::buffer_info> keep;
        const std::vector<Row> rows = rows_of(shards, keep);
        const py::gil_scoped_release released;
        std::vector<bool> answer;
        for (size_t i = 0; i < ids.size(); i++) {
            std::string bytes;
            for (const Part &part : rows[i]) bytes.append(part.data, part.bytes);
            answer.push_back(keep_shard(ids[i], index[i], std::move(bytes)));
        }
        return answer;
    }

    // For each shard its length, or -1 where it is not here.
    std::vector<int64_t> load(const Ids &ids, const std::vector<uint32_t> &index,
                              const py::list &shards) {
        std::vector<py::buffer_info> keep;
        const std::vector<Row> rows = rows_of(shards, keep);
        const py::gil_scoped_release released;
        const std::lock_guard<std::mutex> hold(mutex_);
        std::vector<int64_t> answer;
        for (size_t i = 0; i < ids.size(); i++) {
            const auto found = published_.find(ids[i]);
            if (found == published_.end()) {
                answer.push_back(-1);
                continue;
            }
            const std::string &bytes = found->second[index[i]];
            const char *from = bytes.data();
            size_t left = bytes.size();
            for (const Part &part : rows[i]) {
                const size_t now = std::min(left, part.bytes);
                std::memcpy(part.data, from, now);
                from += now;
                left -= now;
            }
            answer.push_back(int64_t(bytes.size()));
        }
        return answer;
    }

    void remove(const Ids &ids) {
        const std::lock_guard<std::mutex> hold(mutex_);
        for (const std::string &id : ids) {
            drop(published_, id);
            drop(unfinished_, id);
        }
    }

    uint64_t bytes() {
        const std::lock_guard<std::mutex> hold(mutex_);
        return used_;
    }

  private:
    using Shards = std::unordered_map<uint32_t, std::string>;
    using Blocks = std::unordered_map<std::string, Shards>;

    bool keep_shard(const std::string &id, uint32_t index, std::string bytes) {
        const std::lock_guard<std::mutex> hold(mutex_);
        if (published_.count(id)) return true;  // the first complete copy wins
        const auto [found, first] = unfinished_.try_emplace(id);
        Shards &shards = found->second;
        if (first) begun_.push_back(id);
        if (shards.count(index)) return true;
        if (!make_room(bytes.size(), id)) return false;
        used_ += bytes.size();
        shards.emplace(index, std::move(bytes));
        if (shards.size() < shards_per_block_) return true;
        published_.emplace(id, std::move(shards));
        unfinished_.erase(id);
        order_.push_back(id);
        return true;
    }

    // The oldest published blocks go, then those that were begun and never finished.
    bool make_room(uint64_t bytes, const std::string &spared) {
        while (used_ + bytes > limit_ || unfinished_.size() > kMostUnfinished) {
            if (used_ + bytes > limit_ && !order_.empty()) {
                drop(published_, order_.front());
                order_.pop_front();
            } else if (!begun_.empty() && begun_.front() != spared) {
                drop(unfinished_, begun_.front());
                begun_.pop_front();
            } else {
                return false;
            }
        }
        return true;
    }

    void drop(Blocks &blocks, const std::string &id) {
        const auto found = blocks.find(id);
        if (found == blocks.end()) return;
        for (const auto &[index, bytes] : found->second) used_ -= bytes.size();
        blocks.erase(found);
    }

    const size_t shards_per_block_;
    const uint64_t limit_;
    std::mutex mutex_;  // guards all below
    Blocks published_, unfinished_;
    std::deque<std::string> order_, begun_;  // published, unfinished; some are gone already
    uint64_t used_ = 0;
};

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "Blocks in memory, without the GIL.";
    py::class_<Core>(m, "Core")
        .def(py::init<size_t, uint64_t>(), py::arg("shards_per_block"), py::arg("limit"))
        .def("lookup", &Core::lookup)
        .def("dump", &Core::dump)
        .def("load", &Core::load)
        .def("remove", &Core::remove)
        .def("bytes", &Core::bytes);
}
