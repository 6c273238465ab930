"""The tests: each takes the server, and may return what it measured."""

from stage import (
    ACTIMEO,
    dump,
    hosts,
    load,
    lookup,
    mounts,
    new_folder,
    wait_seen,
)


def publish(version, options="", **store_options):
    folder = new_folder("publish")
    with (
        mounts(version, options) as (a, b),
        hosts(("host-a", a / folder), ("host-b", b / folder), **store_options) as (writer, reader),
    ):
        numbers = list(range(8))
        assert not any(reader.call(lookup, numbers)), "blocks are seen that nobody dumped"
        took = []
        for number in numbers:
            assert set(writer.call(dump, [number], 0, [0, 1, 2])) == {"OK"}
            assert reader.call(lookup, [number]) == [False], "half a block is seen"
            assert reader.call(load, [number]) == {number: "NOT_FOUND"}
            assert set(writer.call(dump, [number], 0, [3])) == {"OK"}
            assert writer.call(lookup, [number]) == [True], "its own writer does not see a block"
            took.append(reader.call(wait_seen, number, 2 * ACTIMEO + 4))
        assert set(reader.call(load, numbers).values()) == {"whole"}
    return f"seen by the other host after {max(took):.1f} s at most, actimeo={ACTIMEO}"


def publish_v4(server):
    """NFS 4.2: another host sees a block in time, whole, and never half."""
    return publish("4.2")


def publish_v3(server):
    """NFS 3: another host sees a block in time, whole, and never half."""
    return publish("3")


ALL = [publish_v4, publish_v3]
