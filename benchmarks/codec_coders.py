"""The peers of codec_peers.py: each function yields coders of one library for numbers of one dtype.

A coder is its name, compress(piece) and decompress(coded, out), which returns what holds the bytes:
out where the library can write there, else memory of its own. Pieces are arrays of uint8.
"""

import ctypes

import numpy as np

WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}
ZIPNN_NAMES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}
KEEP_BYTES = 1 << 30


def keep_freed_memory():
    """Make malloc return nothing to the kernel: page faults are no cost of a coder."""
    mallopt, trim_threshold, mmap_max = ctypes.CDLL(None).mallopt, -1, -4
    mallopt(trim_threshold, KEEP_BYTES)
    mallopt(mmap_max, 0)


def width_of(dtype):
    return WIDTHS.get(dtype, 1)


def words_of(dtype):
    return np.dtype(f"u{width_of(dtype)}")


def zipnn(dtype):
    if dtype not in ZIPNN_NAMES:
        return
    from zipnn import ZipNN

    coder = ZipNN(
        method="huffman", input_format="byte", bytearray_dtype=ZIPNN_NAMES[dtype], threads=1
    )

    def compress(piece):
        # What it is given as bf16 it overwrites: it has to have a copy.
        return coder.compress(bytearray(piece) if dtype == "bf16" else piece)

    yield "ZipNN", compress, lambda coded, out: coder.decompress(coded)


def openzl_graph(ext, compressor, dtype, entropy):
    """Code what has order in it and store the rest; its own way to take fp16 apart is longer."""
    nodes, graphs = ext.nodes, ext.graphs
    if dtype == "bf16":
        apart = nodes.BFloat16Deconstruct()(compressor, graphs.Store()(compressor), entropy)
        return nodes.ConvertSerialToNumLE16()(compressor, apart)
    if width_of(dtype) > 1:
        apart = nodes.TransposeSplit()(compressor, entropy)
        return nodes.ConvertSerialToStruct(width_of(dtype))(compressor, apart)
    return entropy


def openzl(dtype):
    from openzl import ext

    for name in ("Entropy", "Fse"):
        compressor, encoder, decoder = ext.Compressor(), ext.CCtx(), ext.DCtx()
        entropy = getattr(ext.graphs, name)()(compressor)
        compressor.select_starting_graph(openzl_graph(ext, compressor, dtype, entropy))
        compressor.set_parameter(ext.CParam.FormatVersion, ext.MAX_FORMAT_VERSION)
        encoder.ref_compressor(compressor)
        encoder.set_parameter(ext.CParam.StickyParameters, 1)

        def compress(piece, ext=ext, encoder=encoder):
            return encoder.compress([ext.Input(ext.Type.Serial, piece)])

        def decompress(coded, out, decoder=decoder):
            return decoder.decompress(coded)[0].content.as_nparray()

        yield f"OpenZL {name}", compress, decompress


def blosc2(dtype):
    import blosc2 as blosc

    blosc.set_nthreads(1)
    # Levels: LZ4 stores least at 5, and zstd at 1 is both faster and no longer than at 5.
    for codec, level in ((blosc.Codec.LZ4, 5), (blosc.Codec.ZSTD, 1)):
        for shuffle in (blosc.Filter.SHUFFLE, blosc.Filter.BITSHUFFLE):

            def compress(piece, codec=codec, level=level, shuffle=shuffle):
                return blosc.compress(
                    piece, typesize=width_of(dtype), clevel=level, filter=shuffle, codec=codec,
                    _ignore_multiple_size=True,
                )  # fmt: skip

            def decompress(coded, out):
                blosc.decompress(coded, out)
                return out

            name = f"blosc2 {shuffle.name.lower()} + {codec.name.lower()} {level}"
            yield name, compress, decompress


def pcodec(dtype):
    from pcodec import ChunkConfig, standalone

    words = words_of(dtype)
    for level in (4, 8):
        config = ChunkConfig(compression_level=level, enable_8_bit=True)

        def compress(piece, config=config):
            return standalone.simple_compress(piece.view(words), config)

        def decompress(coded, out):
            standalone.simple_decompress_into(coded, out.view(words))
            return out

        yield f"pcodec {level}", compress, decompress


def zstd(dtype):
    import zstandard

    decoder = zstandard.ZstdDecompressor()
    for level in (-5, 1, 3):
        encoder = zstandard.ZstdCompressor(level=level)
        yield f"zstd {level}", encoder.compress, lambda coded, out: decoder.decompress(coded)
    if width_of(dtype) > 1:
        yield byteshuffle(words_of(dtype), zstandard.ZstdCompressor(level=1), decoder)


def byteshuffle(words, encoder, decoder):
    """Bytes by their place in a word, in vectorised loops of numpy, and zstd behind them."""

    def compress(piece):
        numbers = piece.view(words)
        planes = np.empty((words.itemsize, len(numbers)), np.uint8)
        for k, plane in enumerate(planes):
            np.copyto(plane, numbers >> (8 * k) if k else numbers, casting="unsafe")
        return encoder.compress(planes)

    def decompress(coded, out):
        numbers = out.view(words)
        planes = np.frombuffer(decoder.decompress(coded), np.uint8).reshape(words.itemsize, -1)
        np.copyto(numbers, planes[-1])
        for plane in planes[-2::-1]:
            np.left_shift(numbers, 8, out=numbers)
            np.bitwise_or(numbers, plane, out=numbers)
        return out

    return "byteshuffle + zstd 1", compress, decompress


def lz4(dtype):
    import lz4.block

    def compress(piece):
        return lz4.block.compress(piece, store_size=False)

    def decompress(coded, out):
        return lz4.block.decompress(coded, uncompressed_size=len(out))

    yield "lz4", compress, decompress


CODERS = {
    "zipnn": zipnn,
    "openzl": openzl,
    "blosc2": blosc2,
    "pcodec": pcodec,
    "zstd": zstd,
    "lz4": lz4,
}
