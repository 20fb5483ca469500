//! Chance that a seed repeats, and clocks that are wrong in a known way.

use keyward_core::protocol::Moment;

/// SplitMix64: tiny, and good enough to choose what goes wrong.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// At least `from`, below `to`.
    pub fn range(&mut self, from: i64, to: i64) -> i64 {
        from + (self.next() % (to - from) as u64) as i64
    }

    pub fn index(&mut self, below: usize) -> usize {
        (self.next() % below as u64) as usize
    }

    /// Once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

/// A machine's clocks, as functions of true time.
pub struct Clocks {
    /// How much faster than true time it runs, in parts per million.
    drift_ppm: i64,
    boot_offset_us: i64,
    wall_offset_us: i64,
    /// How long it stood still; only with a mistake.
    stopped_us: i64,
}

/// Two clocks that err by this in opposite directions differ by less than 1 %.
const DRIFT_PPM_MAX: i64 = 4_900;

impl Clocks {
    pub fn random(chance: &mut Chance) -> Self {
        Self {
            drift_ppm: match chance.index(4) {
                0 => DRIFT_PPM_MAX,
                1 => -DRIFT_PPM_MAX,
                _ => chance.range(-DRIFT_PPM_MAX, DRIFT_PPM_MAX),
            },
            boot_offset_us: chance.range(1, 1_000_000_000),
            wall_offset_us: chance.range(0, 1_000_000_000_000),
            stopped_us: 0,
        }
    }

    pub fn read(&self, now_us: i64) -> Moment {
        let boot_us = now_us + now_us * self.drift_ppm / 1_000_000 + self.boot_offset_us;
        let boot_us = boot_us - self.stopped_us;
        Moment { boot_us, wall_us: boot_us + self.wall_offset_us }
    }

    /// Somebody sets the wall clock.
    pub fn jump(&mut self, by_us: i64) {
        self.wall_offset_us += by_us;
    }

    pub fn stand_still(&mut self, us: i64) {
        self.stopped_us += us;
    }
}
