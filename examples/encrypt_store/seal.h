// SPDX-License-Identifier: MIT
//
// AES-256-GCM for one shard. A sealed shard is as many bytes of ciphertext as it had of plain text,
// then a nonce of 12 bytes and a tag of 16.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace encrypt {

constexpr size_t kNonceBytes = 12, kTagBytes = 16, kSealBytes = kNonceBytes + kTagBytes;

using Key = std::array<uint8_t, 32>;

struct Piece {
    void *data;
    size_t bytes;
};

// Which shard it is; authenticated, so that one is not taken for another.
struct Name {
    const uint8_t *block_id;  // 16 bytes
    uint32_t shard;
};

// Thread-safe: it changes nothing once it is made.
class Sealer {
  public:
    // 64 hex digits, or 32 bytes, from a file or from an environment variable; `tenant` separates
    // those who share the key. Throws ucm::Error.
    static Sealer from(const std::string &key_file, const std::string &key_env,
                       const std::string &tenant);

    // Of the key of this tenant, for the encoding: the key cannot be had from it.
    const std::string &fingerprint() const { return fingerprint_; }

    // `out` takes the pieces' bytes and kSealBytes more. False: OpenSSL failed.
    bool seal(const Name &name, const std::vector<Piece> &plain, uint8_t *out) const;
    // Fills the pieces from `bytes` sealed bytes. False: they are not what was sealed.
    bool open(const Name &name, const uint8_t *sealed, size_t bytes,
              const std::vector<Piece> &plain) const;

  private:
    explicit Sealer(const Key &key);
    Key key_of(const Name &name) const;

    Key key_;
    std::string fingerprint_;
};

}  // namespace encrypt
