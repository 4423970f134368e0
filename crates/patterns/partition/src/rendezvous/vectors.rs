//! Who scores best among nodes of equal weight: one function, compiled for every instruction set that the feature
//! `simd` chooses from at run time, or code of its own. The answer does not depend on the set.

use super::score::score;

/// Nodes that are scored together; the winner is then looked for among so many.
const CHUNK: usize = 64;

/// Nodes come in multiples of this: as many as the widest vectors in use hold.
pub(crate) const LANES: usize = 8;

/// The position of the first largest score. The compiler makes the vectors.
#[inline(always)]
pub(super) fn search(hashes: &[u32], hash: u64) -> usize {
    let chunk_max = |chunk: &[u32]| chunk.iter().fold(0, |max, node| max.max(score(*node, hash)));
    let (mut best, mut at) = (0, 0);
    for (i, chunk) in hashes.chunks(CHUNK).enumerate() {
        let max = chunk_max(chunk);
        if i == 0 || max > best {
            (best, at) = (max, i * CHUNK);
        }
    }
    let winners = &hashes[at..(at + CHUNK).min(hashes.len())];
    at + winners.iter().position(|node| score(*node, hash) == best).unwrap_or(0)
}

#[cfg(feature = "simd")]
mod chosen {
    use pulp::{Simd, WithSimd};

    pub(crate) use pulp::Arch;

    struct FirstMax<'a> {
        hashes: &'a [u32],
        hash: u64,
    }

    impl WithSimd for FirstMax<'_> {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            super::search(self.hashes, self.hash)
        }
    }

    #[inline]
    pub(crate) fn first_max(arch: Arch, hashes: &[u32], hash: u64) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let Arch::V3(v3) = arch {
            return super::super::wide::first_max(v3, hashes.as_chunks().0, hash);
        }
        arch.dispatch(FirstMax { hashes, hash })
    }
}

#[cfg(not(feature = "simd"))]
mod chosen {
    /// What the program was compiled for.
    #[derive(Clone, Copy)]
    pub(crate) struct Arch;

    impl Arch {
        pub(crate) fn new() -> Self {
            Self
        }
    }

    #[inline]
    pub(crate) fn first_max(_: Arch, hashes: &[u32], hash: u64) -> usize {
        super::search(hashes, hash)
    }
}

pub(crate) use chosen::{Arch, first_max};
