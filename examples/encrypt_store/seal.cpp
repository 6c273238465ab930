// SPDX-License-Identifier: MIT
#include "seal.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>

#include "ucm/store_v1.hpp"

namespace encrypt {
namespace {

using Cipher = std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)>;

Key hmac(const Key &key, const void *data, size_t bytes) {
    Key out{};
    unsigned length = 0;
    if (!HMAC(EVP_sha256(), key.data(), int(key.size()), static_cast<const uint8_t *>(data), bytes,
              out.data(), &length))
        throw ucm::Error(UCM_UNAVAILABLE, "OpenSSL has no HMAC-SHA256");
    return out;
}

int nibble(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// `where` names what it came from; the text itself is never shown.
Key parse(std::string text, const std::string &where) {
    Key key{};
    if (text.size() != key.size())
        while (!text.empty() && std::strchr(" \t\r\n", text.back())) text.pop_back();
    bool good = text.size() == key.size() || text.size() == 2 * key.size();
    if (good && text.size() == key.size()) {
        std::copy(text.begin(), text.end(), key.begin());
    } else if (good) {
        for (size_t i = 0; i < key.size(); i++) {
            const int high = nibble(text[2 * i]), low = nibble(text[2 * i + 1]);
            good = good && high >= 0 && low >= 0;
            key[i] = uint8_t(high << 4 | low);
        }
    }
    OPENSSL_cleanse(text.data(), text.size());
    if (!good)
        throw ucm::Error(UCM_INVALID, where +
                                          ": a key is 64 hex digits, or 32 bytes; "
                                          "openssl rand -hex 32 makes one");
    return key;
}

Key read_key(const std::string &path) {
    struct stat st{};
    if (::stat(path.c_str(), &st) != 0) {
        const int error = errno;
        throw ucm::Error(UCM_UNAVAILABLE, "encrypt_key_file: " + path + ": " + std::strerror(error),
                         error);
    }
    if (st.st_mode & 077)
        throw ucm::Error(UCM_INVALID, "encrypt_key_file: " + path +
                                          ": others may read or write it; chmod 600 it");
    std::ifstream file(path, std::ios::binary);
    if (!file) throw ucm::Error(UCM_UNAVAILABLE, "encrypt_key_file: " + path + " cannot be read");
    return parse(std::string(std::istreambuf_iterator<char>(file), {}),
                 "encrypt_key_file: " + path);
}

// The authenticated data: what a shard is called.
std::array<uint8_t, 20> label_of(const Name &name) {
    std::array<uint8_t, 20> label{};
    std::memcpy(label.data(), name.block_id, 16);
    for (size_t i = 0; i < 4; i++) label[16 + i] = uint8_t(name.shard >> 8 * i);
    return label;
}

}  // namespace

Sealer Sealer::from(const std::string &key_file, const std::string &key_env,
                    const std::string &tenant) {
    const char *text = getenv(key_env.c_str());
    if (key_file.empty() && !text)
        throw ucm::Error(UCM_INVALID,
                         "encrypt_key_file: name a file with a key, or put one into "
                         "the environment as " +
                             key_env);
    Key key = key_file.empty() ? parse(text, "encrypt_key_env: $" + key_env) : read_key(key_file);
    const std::string purpose = "ucm encrypt 1/" + tenant;
    Sealer made(hmac(key, purpose.data(), purpose.size()));
    OPENSSL_cleanse(key.data(), key.size());
    return made;
}

Sealer::Sealer(const Key &key) : key_(key) {
    static const char kPurpose[] = "fingerprint";
    const Key digest = hmac(key_, kPurpose, sizeof kPurpose);
    for (size_t i = 0; i < 4; i++) {
        fingerprint_ += "0123456789abcdef"[digest[i] >> 4];
        fingerprint_ += "0123456789abcdef"[digest[i] & 15];
    }
}

// A key for each shard: random nonces of 96 bits are good for 2^32 messages under one key.
Key Sealer::key_of(const Name &name) const {
    const auto label = label_of(name);
    return hmac(key_, label.data(), label.size());
}

bool Sealer::seal(const Name &name, const std::vector<Piece> &plain, uint8_t *out) const {
    const auto label = label_of(name);
    Key key = key_of(name);
    uint8_t nonce[kNonceBytes];
    const Cipher cipher(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free);
    int n = 0;
    bool good = cipher && RAND_bytes(nonce, sizeof nonce) == 1 &&
                EVP_EncryptInit_ex(cipher.get(), EVP_aes_256_gcm(), nullptr, key.data(), nonce) &&
                EVP_EncryptUpdate(cipher.get(), nullptr, &n, label.data(), int(label.size()));
    OPENSSL_cleanse(key.data(), key.size());
    for (const Piece &piece : plain) {
        good =
            good && EVP_EncryptUpdate(cipher.get(), out, &n,
                                      static_cast<const uint8_t *>(piece.data), int(piece.bytes));
        out += piece.bytes;
    }
    std::memcpy(out, nonce, sizeof nonce);
    return good && EVP_EncryptFinal_ex(cipher.get(), out, &n) &&
           EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_GCM_GET_TAG, kTagBytes, out + kNonceBytes);
}

bool Sealer::open(const Name &name, const uint8_t *sealed, size_t bytes,
                  const std::vector<Piece> &plain) const {
    if (bytes < kSealBytes) return false;
    const auto label = label_of(name);
    Key key = key_of(name);
    const uint8_t *seal = sealed + bytes - kSealBytes;
    uint8_t tag[kTagBytes], end[16];
    std::memcpy(tag, seal + kNonceBytes, sizeof tag);
    const Cipher cipher(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free);
    int n = 0;
    bool good = cipher &&
                EVP_DecryptInit_ex(cipher.get(), EVP_aes_256_gcm(), nullptr, key.data(), seal) &&
                EVP_DecryptUpdate(cipher.get(), nullptr, &n, label.data(), int(label.size()));
    OPENSSL_cleanse(key.data(), key.size());
    for (const Piece &piece : plain) {
        good = good && EVP_DecryptUpdate(cipher.get(), static_cast<uint8_t *>(piece.data), &n,
                                         sealed, int(piece.bytes));
        sealed += piece.bytes;
    }
    return good && EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_GCM_SET_TAG, kTagBytes, tag) &&
           EVP_DecryptFinal_ex(cipher.get(), end, &n) > 0;
}

}  // namespace encrypt
