// SPDX-License-Identifier: MIT
//! Blocks in memory, in safe Rust: which shards are here, what is published, and what makes way.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

pub type Id = [u8; 16];

const MOST_UNFINISHED: usize = 1024;
const UNFINISHED_FOR: Duration = Duration::from_secs(600);

/// One copy of a block, complete or not.
struct Copy {
    shards: Vec<Option<Vec<u8>>>,
    have: usize,
    bytes: u64,
    changed: Instant,
    turn: u64, // its key in an order of use
}

#[derive(Default)]
struct Block {
    published: Option<Copy>,
    unfinished: Option<Copy>,
}

#[derive(Default)]
pub struct Counts {
    pub dumped: u64,
    pub dumped_bytes: u64,
    pub loaded: u64,
    pub loaded_bytes: u64,
    pub evicted: u64,
    pub abandoned: u64,
    pub stored: u64, // since the last report, as the next
    pub lost: u64,
}

pub enum Dumped {
    Kept,
    Published,
    NoSpace,
}

pub struct Blocks {
    shards_per_block: usize,
    limit: u64,
    used: u64,
    turn: u64,
    blocks: HashMap<Id, Block>,
    published: BTreeMap<u64, Id>, // the least recently used first
    unfinished: BTreeMap<u64, Id>,
    pub counts: Counts,
}

impl Blocks {
    pub fn new(shards_per_block: usize, limit: u64) -> Self {
        Blocks {
            shards_per_block,
            limit,
            used: 0,
            turn: 0,
            blocks: HashMap::new(),
            published: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.published.len()
    }

    pub fn used(&self) -> u64 {
        self.used
    }

    /// Shards of blocks that are not complete.
    pub fn unfinished_shards(&self) -> u64 {
        let have = |id| {
            self.blocks[id]
                .unfinished
                .as_ref()
                .map_or(0, |copy| copy.have as u64)
        };
        self.unfinished.values().map(have).sum()
    }

    pub fn has(&self, id: &Id) -> bool {
        self.blocks
            .get(id)
            .map_or(false, |block| block.published.is_some())
    }

    pub fn touch(&mut self, id: &Id) {
        self.turn += 1;
        if let Some(copy) = self
            .blocks
            .get_mut(id)
            .and_then(|block| block.published.as_mut())
        {
            self.published.remove(&copy.turn);
            copy.turn = self.turn;
            self.published.insert(copy.turn, *id);
        }
    }

    pub fn shard(&mut self, id: &Id, shard: usize) -> Option<&[u8]> {
        self.touch(id);
        self.blocks.get(id)?.published.as_ref()?.shards[shard].as_deref()
    }

    /// `fill` appends the shard's bytes; it is called if they are wanted.
    pub fn dump(
        &mut self,
        id: &Id,
        shard: usize,
        length: u64,
        replace: bool,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Dumped {
        let block = self.blocks.entry(*id).or_default();
        if block.published.is_some() && block.unfinished.is_none() && !replace {
            return Dumped::Published; // the first complete copy wins
        }
        self.turn += 1;
        let turn = self.turn;
        let shards = self.shards_per_block;
        let copy = block.unfinished.get_or_insert_with(|| Copy {
            shards: (0..shards).map(|_| None).collect(),
            have: 0,
            bytes: 0,
            changed: Instant::now(),
            turn,
        });
        self.unfinished.remove(&copy.turn);
        copy.turn = turn;
        copy.changed = Instant::now();
        self.unfinished.insert(turn, *id);
        if copy.shards[shard].is_some() {
            return Dumped::Kept;
        }
        if !self.make_room(length, id) {
            return Dumped::NoSpace;
        }
        let mut bytes = Vec::with_capacity(length as usize);
        fill(&mut bytes);
        self.used += length;
        let block = self.blocks.get_mut(id).expect("it was made above");
        let copy = block.unfinished.as_mut().expect("making room spares it");
        copy.shards[shard] = Some(bytes);
        copy.bytes += length;
        copy.have += 1;
        if copy.have < self.shards_per_block {
            return Dumped::Kept;
        }
        self.unfinished.remove(&turn);
        if let Some(older) = std::mem::replace(&mut block.published, block.unfinished.take()) {
            self.published.remove(&older.turn);
            self.used -= older.bytes;
        }
        self.published.insert(turn, *id);
        Dumped::Published
    }

    pub fn remove(&mut self, id: &Id) {
        if let Some(block) = self.blocks.remove(id) {
            if let Some(copy) = block.published {
                self.published.remove(&copy.turn);
                self.used -= copy.bytes;
            }
            if let Some(copy) = block.unfinished {
                self.unfinished.remove(&copy.turn);
                self.used -= copy.bytes;
            }
        }
    }

    /// Those that nobody goes on with, and the oldest of too many.
    pub fn abandon_stale(&mut self) {
        while let Some(id) = self.oldest_unfinished(None) {
            let copy = self.blocks[&id].unfinished.as_ref();
            let idle = copy.map_or(Duration::ZERO, |copy| copy.changed.elapsed());
            if self.unfinished.len() <= MOST_UNFINISHED && idle <= UNFINISHED_FOR {
                return;
            }
            self.abandon(&id);
        }
    }

    fn make_room(&mut self, bytes: u64, keep: &Id) -> bool {
        while self.used + bytes > self.limit {
            if let Some(id) = self.published.values().next().copied() {
                self.evict(&id);
            } else if let Some(id) = self.oldest_unfinished(Some(keep)) {
                self.abandon(&id);
            } else {
                return false;
            }
        }
        true
    }

    fn oldest_unfinished(&self, keep: Option<&Id>) -> Option<Id> {
        self.unfinished
            .values()
            .find(|id| Some(*id) != keep)
            .copied()
    }

    fn evict(&mut self, id: &Id) {
        if let Some(copy) = self
            .blocks
            .get_mut(id)
            .and_then(|block| block.published.take())
        {
            self.published.remove(&copy.turn);
            self.used -= copy.bytes;
            self.counts.evicted += 1;
        }
        self.forget_if_empty(id);
    }

    fn abandon(&mut self, id: &Id) {
        if let Some(copy) = self
            .blocks
            .get_mut(id)
            .and_then(|block| block.unfinished.take())
        {
            self.unfinished.remove(&copy.turn);
            self.used -= copy.bytes;
            self.counts.abandoned += 1;
            self.counts.lost += copy.have as u64;
        }
        self.forget_if_empty(id);
    }

    fn forget_if_empty(&mut self, id: &Id) {
        let empty = |block: &Block| block.published.is_none() && block.unfinished.is_none();
        if self.blocks.get(id).map_or(false, empty) {
            self.blocks.remove(id);
        }
    }
}
