#!/bin/sh
# SPDX-License-Identifier: MIT
# A plugin exports one symbol, besides what `ucm bench` measures, and needs nothing of ours:
# check_library.sh PLUGIN.so
set -eu
symbols=$(nm -D --defined-only "$1" | sed 's/.* //; /^ucm_bench_/d')
if [ "$symbols" != ucm_store_plugin_v1 ]; then
    echo "$1 exports, besides ucm_store_plugin_v1:" $symbols >&2
    exit 1
fi
for library in $(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    case $library in
    libc.so.* | libm.so.* | libgcc_s.so.* | libstdc++.so.* | libpthread.so.* | libdl.so.*) ;;
    ld-linux*.so.* | libzstd.so.* | libxxhash.so.* | libasan.so.* | libubsan.so.* | libtsan.so.*) ;;
    *)
        echo "$1 needs $library" >&2
        exit 1
        ;;
    esac
done
