//! Keys as clients send them.

/// How many keys each system is asked for.
pub(crate) const KEYS: usize = 20_000;

/// Keys of 1 to 40 of the given bytes; the same for the same seed (`SplitMix64`).
pub(crate) fn random(seed: u64, alphabet: &[u8]) -> Vec<Vec<u8>> {
    let mut state = seed;
    let mut next = move |n: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    };
    (0..KEYS).map(|_| (0..=next(40)).map(|_| alphabet[next(alphabet.len())]).collect()).collect()
}

/// Bytes that pass through a URL unchanged.
pub(crate) const URL: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-._~%/:,";
