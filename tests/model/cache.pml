// SPDX-License-Identifier: MIT
//
// The protocol of the memory that Cache shares (docs/shared-cache.md, plugins/cache/table.cpp) as a
// bounded model. README.md says what is modelled, and what is not.
//
// A member does one thing after the other; what it has begun is in the words and flags of the
// records, as in the code, so that its threads and its death need nothing more.

#ifndef F
#define F 2  // records with a frame
#endif
#ifndef P
#define P 0  // records without, for spilled blocks
#endif
#ifndef IDS
#define IDS 1
#endif
#ifndef DUMPS
#define DUMPS 0
#endif
#ifndef LOADS
#define LOADS 0
#endif
#ifndef REMOVES
#define REMOVES 0
#endif
#ifndef FLUSHES
#define FLUSHES 0  // writes of unfinished blocks
#endif
#ifndef KILLS
#define KILLS 0
#endif
#ifndef SLOW
#define SLOW 0  // members taken for slow
#endif
#ifndef LEAVES
#define LEAVES 0
#endif
#ifndef READS
#define READS 0  // of the reader without a lock
#endif
#ifndef STORED
#define STORED 0  // ids, as bits, that are below from the beginning
#endif

#define M 2
#define R (F + P)
#define S 2
#define NONE 255

#define FREE 0
#define CLEAN 1
#define GATHERING 2
#define DIRTY 3
#define ZOMBIE 4
#define SPILLED 5

#define ABSENT 0
#define COPYING 1
#define LOADING 2
#define HERE 3

#define AT(r, s) ((r) * S + (s))
#define CODE(i, s) (1 + (i) * S + (s))
#define SEEN(r) (st[r] == CLEAN || st[r] == DIRTY)

// The records.
byte st[R], id[R], owner[R], gen[R];
bit writing[R], removed[R], resting[R];
bit listed[R] = 1;  // in the list of free ones
bit linked[R];      // in its chain
byte word[R * S], mover[R * S];
bit below[R * S];
byte content[R * S];  // of the frame: what was written into it last

// The mutex and the sequence of the one stripe.
bit locked, owner_dead;
byte sequence;

// Members, and what only they know.
bit alive[M], joined[M], leaving[M];
bit begun[M];
byte closing[M];  // 1: it finishes what is its own; 2: nothing is left
byte want[M];      // 1 + AT(id, shard) that a load waits for
byte removing[M];  // 1 + id, while a call of remove goes on
bit asked[M];      // it has asked the store below
byte again[M];     // with BUG_REMOVAL_IN_MEMORY: ids to be removed below, as bits

// I/O: 1 + who writes a record below, what, and how far that is; how a read into a slot ended;
// what the dead may still write into it.
byte writer[R], in_write[R], write_is[R];
byte read_is[R * S], late[R * S];
#define WRITE_BEGUN 0
#define WRITE_KEPT 1       // the store below has these shards
#define WRITE_PUBLISHED 2  // and with them the block
#define REMOVED_BELOW 3
#define READ_OK 1
#define READ_NOTHING 2

// The stores below: whole blocks, and what each handle has of unfinished ones.
bit stored[IDS];
byte part[M * IDS];

// What must hold in the end.
bit must[IDS];   // accepted whole, and not removed or lost since
bit gone[IDS];   // removed, and not dumped since
bit newer[IDS];  // dumped since the last remove began
bit excused[IDS];  // who removed it died over that

byte kills, dumps = DUMPS, loads = LOADS, removes = REMOVES, flushes = FLUSHES, slow = SLOW,
            leaves = LEAVES, reads = READS;

// A critical section that is entered when `condition` holds. Without the reader nobody sees its
// single stores; only death does.
#if READS
#define CRITICAL(condition) \
    atomic { begun[m] && (condition) && !owner_dead && !locked -> locked = 1 };
#define JOINING(condition) atomic { (condition) && !owner_dead && !locked -> locked = 1 };
#define RECOVER atomic { owner_dead && !locked -> locked = 1 };
#define END r = 0; s = 0; check(); locked = 0
#define BEGIN {
#else
#define CRITICAL(condition) begun[m] && (condition) && !owner_dead ->
#define JOINING(condition) (condition) && !owner_dead ->
#define RECOVER owner_dead ->
#define END r = 0; s = 0; check()
#define BEGIN atomic {
#endif

// A place where the process may be killed with the mutex held: after every store that lasts.
#define K if :: kills < KILLS -> kills++; owner_dead = 1; goto killed_inside :: true fi

#define MINE(x, y, what) (word[AT(x, y)] == what && mover[AT(x, y)] == m)
#define USERS(r) (writing[r] || word[AT(r, 0)] == COPYING || word[AT(r, 0)] == LOADING || \
                  word[AT(r, 1)] == COPYING || word[AT(r, 1)] == LOADING)
#define HAVE(r, s) (word[AT(r, s)] == HERE || below[AT(r, s)])
#define WHOLE(r) (word[AT(r, 0)] == HERE && word[AT(r, 1)] == HERE)
#define COMPLETE(r) (HAVE(r, 0) && HAVE(r, 1))
#define UNSAVED(r, s) (word[AT(r, s)] == HERE && !below[AT(r, s)])
#define UNSAVED_MASK(r) (UNSAVED(r, 0) + 2 * UNSAVED(r, 1))
#define PARTLY_BELOW(r) (writing[r] || below[AT(r, 0)] || below[AT(r, 1)])

inline set_word(r, s, what, who) {
    d_step { word[AT(r, s)] = what; mover[AT(r, s)] = who }
}

// to = the linked record of this id that satisfies `fits` (which names it k).
inline search(i, to, fits) {
    d_step {
        to = NONE;
        for (k : 0 .. R - 1) {
            if :: linked[k] && id[k] == i && (fits) -> to = k :: else fi
        }
        k = 0
    }
}
#define VISIBLE SEEN(k)
#define GATHERS (st[k] == GATHERING)
#define SPILLS (st[k] == SPILLED)

inline free(r) {
#ifndef BUG_GENERATION_STAYS
    gen[r] = (gen[r] + 1) % 4; K;
#endif
    j = sequence & 1;  // one change inside another is part of that
    sequence = sequence + 1 - j; linked[r] = 0; sequence = sequence + 1 - j;
    j = 0; K;
    st[r] = FREE; K;
    listed[r] = 1;
}

inline set_zombie(r) {
    st[r] = ZOMBIE; K;
    if :: !USERS(r) && !resting[r] -> free(r) :: else fi
}

inline detach(r) {
    if :: st[r] != ZOMBIE && st[r] != FREE -> set_zombie(r) :: else fi
}

inline unused(r) {
    if
    :: !USERS(r) && !resting[r] && st[r] == ZOMBIE -> free(r)
    :: !USERS(r) && !resting[r] && st[r] == CLEAN && word[AT(r, 0)] == ABSENT &&
            word[AT(r, 1)] == ABSENT -> set_zombie(r)
    :: !USERS(r) && !resting[r] && st[r] == GATHERING && !HAVE(r, 0) && !HAVE(r, 1) -> set_zombie(r)
    :: else
    fi
}

// Of any free record with a frame, or else of any clean block that nobody moves.
inline take(to) {
    to = NONE;
    if
    :: listed[0] -> to = 0
#if F > 1
    :: listed[1] -> to = 1
#endif
    :: else ->
        if
        :: st[0] == CLEAN && !USERS(0) -> to = 0
#if F > 1
        :: st[1] == CLEAN && !USERS(1) -> to = 1
#endif
        :: else
        fi;
        if
        :: to != NONE ->
            detach(to);
            if :: !listed[to] -> to = NONE :: else fi  // it rests
        :: else
        fi
    fi;
    if :: to != NONE -> listed[to] = 0; K :: else fi
}

inline start(r, i, state) {
    set_word(r, 0, ABSENT, 0); set_word(r, 1, ABSENT, 0);
    d_step {
        below[AT(r, 0)] = 0; below[AT(r, 1)] = 0;
        writing[r] = 0; removed[r] = 0; resting[r] = 0;
        owner[r] = m
    };
    sequence++; id[r] = i; sequence++;
    st[r] = state; K;
    sequence++; linked[r] = 1; sequence++;
}

inline unspill(r, i) {
    search(i, b, SPILLS);
    start(r, i, GATHERING); K;
    below[AT(r, 0)] = below[AT(b, 0)]; K;
    below[AT(r, 1)] = below[AT(b, 1)]; K;
    owner[r] = owner[b]; K;
    free(b); K;
    b = 0;
}

inline spill(r) {
    listed[F] = 0; K;
    set_word(F, 0, ABSENT, 0); set_word(F, 1, ABSENT, 0);
    d_step {
        below[AT(F, 0)] = below[AT(r, 0)]; below[AT(F, 1)] = below[AT(r, 1)];
        writing[F] = 0; removed[F] = 0; resting[F] = 0;
        owner[F] = owner[r]; id[F] = id[r]
    };
    st[F] = SPILLED; K;
    linked[F] = 1; K;
    free(r); K;
}

inline publish(r) {
    search(id[r], b, VISIBLE);
#ifdef BUG_OWNER_MOVES
    c = 0;
#else
    c = PARTLY_BELOW(r);
#endif
    sequence++;
    if :: b != NONE -> detach(b); K :: else fi;
    if :: !c -> owner[r] = m; K :: else fi;
    st[r] = DIRTY; must[id[r]] = 1; K;
    sequence++;
    b = 0; c = 0;
}

inline settle(r) {
    sequence++;
    search(id[r], b, VISIBLE);
    if :: b != NONE && b != r -> detach(b); K :: else fi;
    st[r] = CLEAN; K;
    sequence++;
    b = 0;
}

// The promise of rebuild: whatever the dead left half done is one of the states that are allowed.
inline rebuild() {
    sequence = sequence | 1;
    for (r : 0 .. R - 1) { linked[r] = 0; listed[r] = 0 };
    for (r : 0 .. R - 1) {
        if
        :: st[r] == FREE
        :: else ->
#ifndef BUG_PROMOTE_LATE
            if :: st[r] == GATHERING && WHOLE(r) -> st[r] = DIRTY; must[id[r]] = 1; K :: else fi;
#endif
#ifndef BUG_NO_MERGE
            merge(r);
#endif
            linked[r] = 1
        fi
    };
#ifdef BUG_PROMOTE_LATE
    for (r : 0 .. R - 1) {
        if :: st[r] == GATHERING && WHOLE(r) -> st[r] = DIRTY; must[id[r]] = 1; K :: else fi
    };
#endif
    sequence++;
    for (r : 0 .. R - 1) {
        if :: st[r] == FREE -> gen[r] = (gen[r] + 1) % 4; listed[r] = 1 :: else fi
    };
    for (r : 0 .. R - 1) {
        if :: st[r] == ZOMBIE -> unused(r) :: else fi
    };
    r = 0;
    owner_dead = 0
}

// Of two records of one id that were both to be found, one becomes a zombie.
inline merge(r) {
    b = NONE;
    if
    :: SEEN(r) -> search(id[r], b, VISIBLE)
    :: st[r] == GATHERING || st[r] == SPILLED -> search(id[r], b, GATHERS || SPILLS)
    :: else
    fi;
    if
    :: b == NONE
    :: b != NONE && (st[r] == DIRTY || st[r] == GATHERING || st[b] == CLEAN) -> c = b; b = r
    :: else -> c = r
    fi;
    if  // b stays, c goes
    :: b != NONE ->
        if
        :: st[c] == SPILLED ->
            if :: below[AT(c, 0)] -> below[AT(b, 0)] = 1; K :: else fi;
            if :: below[AT(c, 1)] -> below[AT(b, 1)] = 1; K :: else fi;
            owner[b] = owner[c]; K
        :: else
        fi;
        st[c] = ZOMBIE; K
    :: else
    fi;
    b = 0; c = 0;
}

// Whoever removes it may have died between the two.
#ifdef BUG_REMOVAL_HALF_SAID
#define REMOVED(r) removed[r]
#else
#define REMOVED(r) (removed[r] && st[r] == ZOMBIE)
#endif

// What this member knows to be dead: others, and at first who had its place.
#define DEAD(x) (x == m -> !begun[m] : joined[x] && !alive[x])

inline adopt() {
    for (r : 0 .. R - 1) {
        if
        :: st[r] == FREE
        :: st[r] == SPILLED -> if :: DEAD(owner[r]) -> free(r); K :: else fi
        :: else ->
            b = 0;  // does it rest?
            for (s : 0 .. S - 1) {
                if :: word[AT(r, s)] == LOADING && DEAD(mover[AT(r, s)]) -> b = 1 :: else fi
            };
#ifdef BUG_NO_REST
            b = 0;
#endif
#ifndef BUG_REST_NOTED_LATE
            if :: b -> resting[r] = 1; K :: else fi;
#endif
            for (s : 0 .. S - 1) {
                if
                :: (word[AT(r, s)] == COPYING || word[AT(r, s)] == LOADING) && DEAD(mover[AT(r, s)]) ->
                    set_word(r, s, ABSENT, 0); K
                :: else
                fi
            };
            s = 0;
            if
            :: writing[r] && DEAD(owner[r]) && REMOVED(r) ->
#ifdef BUG_REMOVAL_IN_MEMORY
                again[m] = again[m] | (1 << id[r]); writing[r] = 0; K
#else
                writer[r] = 0; owner[r] = m; K
#endif
            :: writing[r] && DEAD(owner[r]) && !REMOVED(r) -> writing[r] = 0; K
            :: else
            fi;
            if
            :: b -> resting[r] = 1; K; detach(r); K
            :: !b && DEAD(owner[r]) && (st[r] == GATHERING || st[r] == DIRTY) ->
                below[AT(r, 0)] = 0; K;
                below[AT(r, 1)] = 0; K;
                owner[r] = m; K;
                if :: !HAVE(r, 0) && !HAVE(r, 1) && !USERS(r) -> detach(r); K :: else fi
            :: else -> unused(r)
            fi;
            b = 0
        fi
    };
    r = 0;
    for (s : 0 .. M - 1) {
        if :: DEAD(s) && s != m -> joined[s] = 0; leaving[s] = 0; K :: else fi
    };
    s = 0;
    if :: !begun[m] -> joined[m] = 1; leaving[m] = 0 :: else fi;
    begun[m] = 1;
}

// What is true whenever nobody holds the mutex, and nobody died with it.
inline check() {
    d_step {
        for (k : 0 .. R - 1) {
            assert(st[k] != FREE || listed[k]);
            assert((st[k] == FREE) == !linked[k]);
            assert(st[k] == FREE || word[AT(k, 0)] != HERE || content[AT(k, 0)] == CODE(id[k], 0));
            assert(st[k] == FREE || word[AT(k, 1)] != HERE || content[AT(k, 1)] == CODE(id[k], 1));
            assert(st[k] != DIRTY || WHOLE(k));
#if R > 1
            for (j : 0 .. R - 1) {
                if
                :: j < k && st[j] != FREE && st[k] != FREE && id[j] == id[k] ->
                    assert(!(SEEN(j) && SEEN(k)));
                    assert(!((GATHERS || SPILLS) && (st[j] == GATHERING || st[j] == SPILLED)));
                    assert(!(writing[j] && writing[k]))
                :: else
                fi
            }
#endif
        };
        k = 0; j = 0
    }
}


// A dump of one shard, until its copy is to begin.
inline take_dump() {
    search(i, r, GATHERS);
    search(i, v, VISIBLE);
    newer[i] = 1; gone[i] = 0;
    if
    :: r == NONE ->
        search(i, b, SPILLS);
        if
        :: b == NONE && v != NONE && WHOLE(v)  // a duplicate
        :: b == NONE && (v == NONE || !WHOLE(v)) ->
            take(f);
            if :: f != NONE -> start(f, i, GATHERING); K; r = f :: else fi
        :: b != NONE ->
            take(f);
            if :: f != NONE -> unspill(f, i); r = f :: else fi
        fi
    :: else
    fi;
    if
    :: r != NONE && word[AT(r, s)] == ABSENT && !below[AT(r, s)] ->
        set_word(r, s, COPYING, m); K
    :: else
    fi;
    i = 0; v = 0; f = 0; b = 0;
}

inline land(x, y) {
    content[AT(x, y)] = CODE(id[x], y);
    if
    :: st[x] == GATHERING ->
        set_word(x, y, HERE, 0); K;
        if :: WHOLE(x) -> publish(x) :: else fi
    :: else -> set_word(x, y, ABSENT, 0); K; unused(x)
    fi;
}

inline plan_load() {
    i = (want[m] - 1) / S; s = (want[m] - 1) % S;
    search(i, v, VISIBLE);
    if
    :: v != NONE && word[AT(v, s)] == HERE ->
        assert(content[AT(v, s)] == CODE(i, s));
        want[m] = 0
    :: v != NONE && word[AT(v, s)] == ABSENT ->
        read_is[AT(v, s)] = 0; set_word(v, s, LOADING, m); K
    :: v != NONE && word[AT(v, s)] == LOADING && mover[AT(v, s)] != m ->
        // Somebody else reads it, and is taken for slow.
        slow--; detach(v); K
    :: v == NONE ->
        take(f);
        if
        :: f != NONE ->
            start(f, i, CLEAN); K;
            read_is[AT(f, s)] = 0; set_word(f, s, LOADING, m); K
        :: else -> want[m] = 0
        fi
    :: else
    fi;
    i = 0; v = 0; f = 0;
}
#define SHOWS(x, y) (SEEN(x) && linked[x] && word[AT(x, y)] == LOADING)
#define WANTED(x, y) (want[m] == 1 + AT(id[x], y) && SHOWS(x, y))
#if F > 1
#define WAITED_FOR (WANTED(0, 0) || WANTED(0, 1) || WANTED(1, 0) || WANTED(1, 1))
#define I_READ (MINE(0, 0, LOADING) || MINE(0, 1, LOADING) || MINE(1, 0, LOADING) || \
                MINE(1, 1, LOADING))
#else
#define WAITED_FOR (WANTED(0, 0) || WANTED(0, 1))
#define I_READ (MINE(0, 0, LOADING) || MINE(0, 1, LOADING))
#endif

inline arrive(x, y) {
    if
    :: read_is[AT(x, y)] == READ_OK -> set_word(x, y, HERE, 0)
    :: else ->
        set_word(x, y, ABSENT, 0);
        if :: want[m] == 1 + AT(id[x], y) -> want[m] = 0 :: else fi
    fi;
    read_is[AT(x, y)] = 0; K;
    unused(x);
}

inline begin_write(x) {
    d_step {
        for (k : 0 .. R - 1) {
            assert(!(k != x && st[k] != FREE && id[k] == id[x] && writer[k]))
        };
        k = 0;
        assert(!writer[x]);
        if :: st[x] == GATHERING && !COMPLETE(x) && flushes -> flushes-- :: else fi;
        writer[x] = 1 + m; in_write[x] = UNSAVED_MASK(x); write_is[x] = WRITE_BEGUN
    };
    writing[x] = 1; K;
}

inline write_below(x) {
    assert(!(in_write[x] & 1) || content[AT(x, 0)] == CODE(id[x], 0));
    assert(!(in_write[x] & 2) || content[AT(x, 1)] == CODE(id[x], 1));
    part[m * IDS + id[x]] = part[m * IDS + id[x]] | in_write[x];
    write_is[x] = WRITE_KEPT;
    if
    :: part[m * IDS + id[x]] == 3 -> stored[id[x]] = 1; part[m * IDS + id[x]] = 0
    :: else
    fi;
    if :: stored[id[x]] -> write_is[x] = WRITE_PUBLISHED :: else fi
}

inline end_write(x) {
    if
    :: (st[x] == GATHERING || st[x] == DIRTY) && write_is[x] == WRITE_PUBLISHED && COMPLETE(x) ->
        settle(x)
    :: (st[x] == GATHERING || st[x] == DIRTY) && !(write_is[x] == WRITE_PUBLISHED && COMPLETE(x)) ->
        if :: in_write[x] & 1 -> below[AT(x, 0)] = 1; K :: else fi;
        if :: in_write[x] & 2 -> below[AT(x, 1)] = 1; K :: else fi;
        if
        :: COMPLETE(x) && !UNSAVED_MASK(x) && WHOLE(x) ->  // all of it goes again
            below[AT(x, 0)] = 0; K; below[AT(x, 1)] = 0; K
        :: COMPLETE(x) && !UNSAVED_MASK(x) && !WHOLE(x) ->  // lost, and counted
            must[id[x]] = 0; detach(x); K
        :: else
        fi
    :: else
    fi;
    writer[x] = 0; writing[x] = 0; K;
    unused(x);
}

inline give_up(x) {
    writer[x] = 0;
#ifdef BUG_OWNER_BEFORE_END
    owner[x] = 1 - m; K;
    writing[x] = 0; K
#else
    writing[x] = 0; K;
    owner[x] = 1 - m; K
#endif
}

inline end_removal(x) {
#ifndef BUG_FILLED_MEANWHILE
    search(id[x], v, VISIBLE);
    if :: v != NONE && st[v] == CLEAN -> detach(v); K :: else fi;
    v = 0;
#endif
    writer[x] = 0; writing[x] = 0; K;
    unused(x);
}

inline rested(x) {
    late[AT(x, 0)] = 0; late[AT(x, 1)] = 0;
    resting[x] = 0; K;
    unused(x);
}

inline drop() {
    i = removing[m] - 1;
    newer[i] = 0;
    search(i, v, SPILLS);
    if :: v != NONE -> free(v); K :: else fi;
    search(i, v, GATHERS);
    if :: v != NONE -> removed[v] = 1; K; detach(v); K :: else fi;
    search(i, v, VISIBLE);
    if :: v != NONE -> removed[v] = 1; must[i] = 0; K; detach(v); K :: else fi;
    i = 0; v = 0;
}

inline second_pass() {
    i = removing[m] - 1;
    search(i, v, VISIBLE);
    if
    :: v != NONE && st[v] == CLEAN -> must[i] = 0; detach(v); K
#ifndef BUG_WRITTEN_MEANWHILE
    :: v != NONE && st[v] == DIRTY && writing[v] ->
        removed[v] = 1; must[i] = 0; K; detach(v); K
#endif
    :: else
    fi;
    search(i, v, GATHERS);
    if :: v != NONE && PARTLY_BELOW(v) -> removed[v] = 1; K; detach(v); K :: else fi;
    if :: !newer[i] -> gone[i] = 1 :: else fi;
    removing[m] = 0; asked[m] = 0;
    i = 0; v = 0;
}

#define HAS_HEIR (joined[1 - m] && alive[1 - m] && !leaving[1 - m])
// To a living member what it may finish, but for what is being written; that, when it has been.
inline leave() {
#ifndef BUG_HEIR_LEAVES
    leaving[m] = 1; K;
#endif
    for (r : 0 .. F - 1) {
        if
        :: st[r] == GATHERING && owner[r] == m && !COMPLETE(r) && !writing[r] && HAS_HEIR ->
            below[AT(r, 0)] = 0; K; below[AT(r, 1)] = 0; K;
            owner[r] = 1 - m; K
        :: st[r] == GATHERING && owner[r] == m && !COMPLETE(r) && !HAS_HEIR -> detach(r); K
        :: else
        fi
    };
    r = 0;
#if P
    if :: st[F] == SPILLED && owner[F] == m -> free(F); K :: else fi;
#endif
}
#define OWES(x) ((owner[x] == m && ((st[x] == GATHERING && COMPLETE(x)) || st[x] == DIRTY || \
                                    writing[x])) || \
                 writer[x] == 1 + m || MINE(x, 0, COPYING) || MINE(x, 1, COPYING) || \
                 MINE(x, 0, LOADING) || MINE(x, 1, LOADING))
#if R == 1
#define BUSY OWES(0)
#elif R == 2
#define BUSY (OWES(0) || OWES(1))
#else
#define BUSY (OWES(0) || OWES(1) || OWES(2))
#endif

// With the kill: what only the process knew is gone; its reads may still land.
inline die() {
    d_step {
        if :: asked[m] -> excused[removing[m] - 1] = 1 :: else fi;
        alive[m] = 0; begun[m] = 0; closing[m] = 0;
        want[m] = 0; removing[m] = 0; asked[m] = 0; again[m] = 0;
        for (k : 0 .. IDS - 1) { part[m * IDS + k] = 0 };
        for (k : 0 .. R - 1) {
            if :: writer[k] == 1 + m -> writer[k] = 0 :: else fi;
            for (j : 0 .. S - 1) {
                if
                :: MINE(k, j, LOADING) ->
                    if
                    :: read_is[AT(k, j)] == 0 && stored[id[k]] -> late[AT(k, j)] = CODE(id[k], j)
                    :: else
                    fi;
                    read_is[AT(k, j)] = 0
                :: else
                fi
            }
        };
        r = 0; s = 0; i = 0; v = 0; f = 0; b = 0; c = 0; j = 0; k = 0
    }
}

#define ONE_WRITES(x, y) (linked[y] && id[y] == id[x] && writing[y])
#ifdef BUG_TWO_WRITES
#define ANOTHER_WRITES(x) 0
#elif R == 1
#define ANOTHER_WRITES(x) 0
#elif R == 2
#define ANOTHER_WRITES(x) ONE_WRITES(x, 1 - x)
#else
#define ANOTHER_WRITES(x) ((x != 0 && ONE_WRITES(x, 0)) || (x != 1 && ONE_WRITES(x, 1)))
#endif

#define NOTHING_LEFT (!(dumps || loads || removes || removing[0] || removing[1]))

#if F > 1
#define ANY_SLOT(P) (P(0, 0) || P(0, 1) || P(1, 0) || P(1, 1))
#define PICK_SLOT(P) \
    if \
    :: P(0, 0) -> r = 0; s = 0 \
    :: P(0, 1) -> r = 0; s = 1 \
    :: P(1, 0) -> r = 1; s = 0 \
    :: P(1, 1) -> r = 1; s = 1 \
    fi
#define ANY(P) (P(0) || P(1))
#define PICK(P) if :: P(0) -> r = 0 :: P(1) -> r = 1 fi
#else
#define ANY_SLOT(P) (P(0, 0) || P(0, 1))
#define PICK_SLOT(P) if :: P(0, 0) -> r = 0; s = 0 :: P(0, 1) -> r = 0; s = 1 fi
#define ANY(P) P(0)
#define PICK(P) r = 0
#endif

// What a member may go on with, in slot y of record x or in record x.
#define LANDS(x, y) MINE(x, y, COPYING)
#define IS_READ(x, y) (MINE(x, y, LOADING) && read_is[AT(x, y)] == 0)
#define ARRIVES(x, y) (MINE(x, y, LOADING) && read_is[AT(x, y)])
#define TO_WRITE(x) \
    (linked[x] && owner[x] == m && !writing[x] && UNSAVED_MASK(x) && !ANOTHER_WRITES(x) && \
     (st[x] == DIRTY || (st[x] == GATHERING && (COMPLETE(x) || flushes))))
#define IS_WRITTEN(x) (writer[x] == 1 + m && write_is[x] == WRITE_BEGUN)
#define WROTE(x) \
    (writer[x] == 1 + m && (write_is[x] == WRITE_KEPT || write_is[x] == WRITE_PUBLISHED))
#define TO_END(x) (WROTE(x) && !(removed[x] && st[x] == ZOMBIE))
// The write of a block that was removed meanwhile, or of a dead member's, is removed below.
#define OF_REMOVED(x) (writing[x] && owner[x] == m && removed[x] && st[x] == ZOMBIE)
#define TO_REMOVE(x) (OF_REMOVED(x) && (writer[x] == 0 || WROTE(x)) && write_is[x] != REMOVED_BELOW)
#define REMOVED_AGAIN(x) (OF_REMOVED(x) && write_is[x] == REMOVED_BELOW)
// The store below fails as its member leaves.
#define GIVES_UP(x) (IS_WRITTEN(x) && closing[m] && st[x] == DIRTY && HAS_HEIR)
#define RESTS(x) (resting[x] && st[x] != FREE)
#define ABANDONED(x) \
    (NOTHING_LEFT && !closing[m] && st[x] == GATHERING && owner[x] == m && !COMPLETE(x) && \
     !USERS(x))
#define STAYS(x) (st[x] == GATHERING && owner[x] == m && !COMPLETE(x))
#define TO_SPILL(x) \
    (st[x] == GATHERING && !USERS(x) && !UNSAVED(x, 0) && !UNSAVED(x, 1) && !COMPLETE(x) && \
     (below[AT(x, 0)] || below[AT(x, 1)]) && listed[F])

#ifdef BUG_ADOPTS_AS_IT_LEAVES
#define TAKES_OVER 1
#else
#define TAKES_OVER (!leaving[m])
#endif

proctype Member(byte m) {
    byte r, s, i, v, f, b, c, j, k;

join:
    alive[m] = 1;
end_loop:
    do
    :: BEGIN JOINING(!begun[m] || (joined[1 - m] && !alive[1 - m] && TAKES_OVER)) adopt(); END }
    :: BEGIN CRITICAL(ANY_SLOT(LANDS)) PICK_SLOT(LANDS); land(r, s); END }
    :: BEGIN CRITICAL(ANY(TO_WRITE)) PICK(TO_WRITE); begin_write(r); END }
    :: atomic { ANY(IS_WRITTEN) -> PICK(IS_WRITTEN); write_below(r); r = 0 }
    :: BEGIN CRITICAL(ANY(TO_END)) PICK(TO_END); end_write(r); END }
    :: BEGIN CRITICAL(ANY(ABANDONED)) PICK(ABANDONED); detach(r); END }
#if DUMPS
    :: BEGIN CRITICAL(dumps && !closing[m])
           dumps--;
           if
           :: i = 0
#if IDS > 1
           :: i = 1
#endif
           fi;
           if :: s = 0 :: s = 1 fi;
           take_dump(); END }
#endif
#if LOADS
    :: atomic { ANY_SLOT(IS_READ) ->
           PICK_SLOT(IS_READ);
           if
           :: stored[id[r]] -> read_is[AT(r, s)] = READ_OK; content[AT(r, s)] = CODE(id[r], s)
           :: else -> read_is[AT(r, s)] = READ_NOTHING
           fi;
           r = 0; s = 0 }
    :: BEGIN CRITICAL(ANY_SLOT(ARRIVES)) PICK_SLOT(ARRIVES); arrive(r, s); END }
    :: BEGIN CRITICAL(loads && !want[m] && !closing[m])
           loads--;
           if
           :: want[m] = 1
#if IDS > 1
           :: want[m] = 1 + S
#endif
           fi;
           if :: skip :: want[m] = want[m] + 1 fi;
           END }
    :: BEGIN CRITICAL(want[m] && !I_READ && (!WAITED_FOR || slow)) plan_load(); END }
#endif
#if LOADS && KILLS
    :: BEGIN CRITICAL(ANY(RESTS)) PICK(RESTS); rested(r); END }
#endif
#if REMOVES
    :: BEGIN CRITICAL(removes && !removing[m] && !closing[m])
           removes--;
           if
           :: removing[m] = 1
#if IDS > 1
           :: removing[m] = 2
#endif
           fi;
           drop(); END }
    :: atomic { removing[m] && !asked[m] ->
           stored[removing[m] - 1] = 0; part[m * IDS + removing[m] - 1] = 0; asked[m] = 1 }
    :: BEGIN CRITICAL(removing[m] && asked[m]) second_pass(); END }
    :: atomic { ANY(TO_REMOVE) ->
           PICK(TO_REMOVE);
           stored[id[r]] = 0; part[m * IDS + id[r]] = 0; write_is[r] = REMOVED_BELOW;
           r = 0 }
    :: BEGIN CRITICAL(ANY(REMOVED_AGAIN)) PICK(REMOVED_AGAIN); end_removal(r); END }
    :: atomic { again[m] & 1 -> stored[0] = 0; again[m] = again[m] & 2 }
    :: atomic { again[m] & 2 -> stored[IDS - 1] = 0; again[m] = again[m] & 1 }
#endif
#if P
    :: BEGIN CRITICAL(ANY(TO_SPILL) && !closing[m]) PICK(TO_SPILL); spill(r); END }
    :: BEGIN CRITICAL(NOTHING_LEFT && st[F] == SPILLED && owner[F] == m) free(F); END }
#endif
#if KILLS
    :: atomic { kills < KILLS && !owner_dead -> kills++; die(); goto dead }
    :: BEGIN RECOVER rebuild(); END }
#endif
#if LEAVES
    :: BEGIN CRITICAL(ANY(GIVES_UP)) PICK(GIVES_UP); give_up(r); END }
    :: BEGIN CRITICAL((leaves && !closing[m] && !want[m] && !removing[m]) || \
                      (closing[m] == 1 && !BUSY))
           if :: !closing[m] -> leaves-- :: else fi;
           closing[m] = 1;
           leave();
           if :: !BUSY && !ANY(STAYS) -> closing[m] = 2 :: else fi;
           END }
    :: BEGIN CRITICAL(closing[m] == 2)
           joined[m] = 0; leaving[m] = 0; alive[m] = 0; END; goto over }
#endif
    od;

killed_inside:
    atomic { locked = 0; die() };
dead:
    goto join;
over:
    skip
}

#if KILLS && LOADS
inline landed(x) {
    assert(st[x / S] == FREE || word[x] != HERE || content[x] == CODE(id[x / S], x % S))
}

// I/O of the dead lands in its slot at any time, until the rest of that frame is over.
proctype Late() {
    byte k, j;
end_late:
    do
    :: atomic { late[0] -> content[0] = late[0]; late[0] = 0; landed(0) }
    :: atomic { late[1] -> content[1] = late[1]; late[1] = 0; landed(1) }
#if F > 1
    :: atomic { late[2] -> content[2] = late[2]; late[2] = 0; landed(2) }
    :: atomic { late[3] -> content[3] = late[3]; late[3] = 0; landed(3) }
#endif
    od
}
#endif

#if READS
// A lookup and a copy without the mutex.
proctype Reader() {
    byte r, i, s, before, generation, value, found;
end_reader:
    do
    :: atomic { reads ->
           reads--;
           if
           :: i = 0
#if IDS > 1
           :: i = 1
#endif
           fi;
           if :: s = 0 :: s = 1 fi };
       before = sequence;
       if :: before & 1 -> goto over :: else fi;
       found = NONE; r = 0;
       do
       :: r < R ->
           if
           :: linked[r] ->
#ifndef BUG_GENERATION_LATE
               generation = gen[r];
#endif
               if
               :: id[r] == i ->
                   if
                   :: SEEN(r) ->
#ifdef BUG_GENERATION_LATE
                       generation = gen[r];
#endif
                       found = r; break
                   :: else
                   fi
               :: else
               fi
           :: else
           fi;
           r++
       :: else -> break
       od;
       if :: sequence != before || found == NONE -> goto over :: else fi;
       if :: word[AT(found, s)] != HERE -> goto over :: else fi;
       value = content[AT(found, s)];
#ifdef BUG_NO_RECHECK
       assert(value == CODE(i, s));
#else
       atomic { if :: gen[found] == generation -> assert(value == CODE(i, s)) :: else fi };
#endif
over:
       atomic { r = 0; i = 0; s = 0; before = 0; generation = 0; value = 0; found = 0 }
    od
}
#endif

// When nothing can happen any more: no frame is lost, nobody waits, and what was promised is true.
proctype Quiet() {
    byte k;
    timeout ->
    d_step {
        assert(!owner_dead && !locked && !want[0] && !want[1] && !removing[0] && !removing[1]);
        for (k : 0 .. R - 1) {
            assert(st[k] == FREE || st[k] == CLEAN);
            assert(!USERS(k) && !resting[k] && !writing[k]);
            assert(st[k] == FREE || word[AT(k, 0)] == HERE || word[AT(k, 1)] == HERE);
            assert(st[k] == FREE || stored[id[k]] || excused[id[k]]);
            assert(st[k] == FREE || !gone[id[k]])
        };
        for (k : 0 .. IDS - 1) {
            assert(!must[k] || stored[k] || excused[k]);
            assert(!gone[k] || !stored[k])
        }
    }
}

init {
    byte k;
    atomic {
        for (k : 0 .. IDS - 1) { stored[k] = (STORED >> k) & 1 };
        k = 0;
        run Member(0);
#if !READS
        run Member(1);
#endif
#if READS
        run Reader();
#endif
#if KILLS && LOADS
        run Late();
#endif
        run Quiet()
    }
}
