// SPDX-License-Identifier: MIT
//
// The engines of Posix as a build has them that was made without liburing and libaio.
#include "../../plugins/posix/engines.h"

#include <catch2/catch.hpp>

#include "ucm/store_v1.hpp"

using ucm::posix::choose_engine;

TEST_CASE("a build without an engine says so and what to install", "[engines]") {
    for (const std::string name : {"aio", "io_uring"}) {
        std::string told;
        try {
            choose_engine(name, 8, true);
        } catch (const ucm::Error &error) {
            told = error.what();
            CHECK(error.status() == UCM_UNAVAILABLE);
        }
        CHECK(told.find("posix_io_engine: this build has no " + name) == 0);
        CHECK(told.find(name == "aio" ? "libaio-dev" : "liburing-dev") != std::string::npos);
        CHECK(told.find("or use auto or psync") != std::string::npos);
    }
}

TEST_CASE("auto goes on with psync in such a build and says why", "[engines]") {
    const auto choice = choose_engine("auto", 8, true);
    CHECK(choice.name == "psync");
    CHECK(choice.why.find("this build has no io_uring") != std::string::npos);
    CHECK(choice.why.find("this build has no aio") != std::string::npos);
}
