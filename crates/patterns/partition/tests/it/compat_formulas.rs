//! A second, deliberately naive implementation of each formula, over many keys.

use mainstay_partition::Place;
use mainstay_partition::compat::{self, HaproxyFunction, HaproxyHash, cassandra_token, redis_slot};
use xxhash_rust::xxh64::xxh64;

use crate::fleet::{Seeded, key};

const KEYS: usize = 20_000;

/// The first point at or after the hash, by looking at all of them.
fn successor(points: &[(u64, usize)], hash: u64) -> usize {
    let later = points.iter().filter(|p| p.0 >= hash).min();
    later.or_else(|| points.iter().min()).unwrap().1
}

fn hosts(n: usize) -> Vec<(String, u32)> {
    (0..n).map(|i| (format!("10.0.{}.{}:8080", i / 9, i % 9), (i % 5 + 1) as u32)).collect()
}

fn envoy_points(hosts: &[(String, u32)], min: f64, max: f64, hash: fn(&[u8]) -> u64) -> Vec<(u64, usize)> {
    let sum: f64 = hosts.iter().map(|h| f64::from(h.1)).sum();
    let weights: Vec<f64> = hosts.iter().map(|h| f64::from(h.1) * 1.0 / sum).collect();
    let least = weights.iter().copied().fold(f64::INFINITY, f64::min);
    let scale = ((least * min).ceil() / least).min(max);
    let (mut current, mut target) = (0.0, 0.0);
    let mut points = vec![];
    for (at, weight) in weights.iter().enumerate() {
        target += scale * weight;
        for i in 0.. {
            if current >= target {
                break;
            }
            points.push((hash(format!("{}_{i}", hosts[at].0).as_bytes()), at));
            current += 1.0;
        }
    }
    points
}

#[test]
fn f21_envoy_rings_are_running_sums_in_host_order() {
    for (n, points) in [(3, 1026), (7, 1029), (100, 1100)] {
        let ring =
            (0..n).fold(compat::envoy_ring(1024, 8_388_608), |b, i| b.host(format!("10.0.0.{i}:80"), 1));
        assert_eq!(ring.build().unwrap().points(), points, "{n} hosts");
    }
    for n in [2, 3, 7, 20] {
        let hosts = hosts(n);
        let naive = envoy_points(&hosts, 1024.0, 8_388_608.0, |b| xxh64(b, 0));
        let ring = hosts.iter().fold(compat::envoy_ring(1024, 8_388_608), |b, h| b.host(h.0.as_str(), h.1));
        let ring = ring.build().unwrap();
        assert_eq!(ring.points(), naive.len());
        for i in 0..KEYS / 10 {
            let wanted = successor(&naive, xxh64(&key(i), 0));
            assert_eq!(ring.owner(&key(i)).unwrap().as_usize(), wanted, "{n} hosts, key {i}");
        }
    }
    let most = (0..5).fold(compat::envoy_ring(100, 100), |b, i| b.host(format!("h{i}"), i + 1));
    assert!((100..=105).contains(&most.build().unwrap().points()), "the largest size bounds the scale");
    for (min, max) in [(0, 10), (20, 10), (1, 8_388_609)] {
        assert!(compat::envoy_ring(min, max).host("a", 1).build().is_err());
    }
}

/// `MurmurHash2` byte by byte.
fn murmur2(bytes: &[u8]) -> u64 {
    let m = 0xc6a4_a793_5bd1_e995_u128;
    let mul = |a: u64| (u128::from(a) * m) as u64;
    let mut h = 0xc70f_6907 ^ mul(bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let value = chunk.iter().rev().fold(0_u64, |v, b| v << 8 | u64::from(*b));
        if chunk.len() == 8 {
            let k = mul(value);
            h = mul(h ^ mul(k ^ (k >> 47)));
        } else {
            h = mul(h ^ value);
        }
    }
    let h2 = mul(h ^ (h >> 47));
    h2 ^ (h2 >> 47)
}

#[test]
fn envoy_murmur_points() {
    let hosts = hosts(6);
    let naive = envoy_points(&hosts, 1024.0, 8_388_608.0, murmur2);
    let builder = hosts.iter().fold(compat::envoy_ring(1024, 8_388_608), |b, h| b.host(h.0.as_str(), h.1));
    let ring = builder.murmur2().build().unwrap();
    for i in 0..KEYS / 10 {
        assert_eq!(ring.owner(&key(i)).unwrap().as_usize(), successor(&naive, xxh64(&key(i), 0)));
    }
}

#[test]
fn envoy_maglev_is_the_table_of_sorted_keys() {
    let mut hosts = hosts(11);
    Seeded(2).shuffle(&mut hosts);
    let place =
        hosts.iter().fold(compat::envoy_maglev(65_537), |b, h| b.host(h.0.as_str(), h.1)).build().unwrap();
    hosts.sort();
    let sum: f64 = hosts.iter().map(|h| f64::from(h.1)).sum();
    let weights: Vec<f64> = hosts.iter().map(|h| f64::from(h.1) * 1.0 / sum).collect();
    let most = weights.iter().copied().fold(0.0, f64::max);
    let m = 65_537_u64;
    let mut table = vec![None; m as usize];
    let (mut next, mut target) = (vec![0_u64; hosts.len()], vec![0.0; hosts.len()]);
    let mut taken = 0;
    'fill: for round in 1_u64.. {
        for (i, (id, _)) in hosts.iter().enumerate() {
            if round as f64 * weights[i] < target[i] {
                continue;
            }
            target[i] += most;
            loop {
                let skip = xxh64(id.as_bytes(), 1) % (m - 1) + 1;
                let at = (xxh64(id.as_bytes(), 0) % m + skip * next[i]) % m;
                next[i] += 1;
                if table[at as usize].is_none() {
                    table[at as usize] = Some(i);
                    break;
                }
            }
            taken += 1;
            if taken == m {
                break 'fill;
            }
        }
    }
    for i in 0..KEYS {
        let at = xxh64(&key(i), 0) % m;
        assert_eq!(Some(place.owner(&key(i)).unwrap().as_usize()), table[at as usize]);
    }
}

/// CRC-32 bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}

#[test]
fn b5_nginx_hashes_names_as_written() {
    let servers =
        [("10.0.0.1:80", 1), ("cache.example:8080", 3), ("[::1]:80", 1), ("plain", 2), ("unix:/run/x", 1)];
    let split =
        [("10.0.0.1", "80"), ("cache.example", "8080"), ("[::1]", "80"), ("plain", ""), ("/run/x", "")];
    let ring = servers.iter().fold(compat::nginx(), |b, s| b.server(s.0, s.1)).build().unwrap();
    let mut points = vec![];
    for (at, (host, port)) in split.iter().enumerate() {
        let mut before = 0_u32;
        for _ in 0..160 * servers[at].1 {
            let bytes = [host.as_bytes(), &[0], port.as_bytes(), &before.to_le_bytes()].concat();
            before = crc32(&bytes);
            points.push((u64::from(before), at));
        }
    }
    for i in 0..KEYS / 10 {
        let wanted = successor(&points, u64::from(crc32(&key(i))));
        assert_eq!(ring.owner(&key(i)).unwrap().as_usize(), wanted);
    }
}

#[test]
fn f4_nginx_says_when_it_would_not_hash() {
    let two = compat::nginx().server("a:1", 1).server("b:1", 1).build().unwrap();
    assert_eq!(two.bypass(b""), Some(compat::Bypass::EmptyKey));
    assert_eq!(two.bypass(b"k"), None);
    let one = compat::nginx().server("a:1", 1).build().unwrap();
    assert_eq!(one.bypass(b"k"), Some(compat::Bypass::SingleServer));
    // Of two servers one is down with a hundred times the points: most keys pass more than 20 of them.
    let down = compat::nginx().server("a:1", 1).down("b:1", 100).build().unwrap();
    let tired = (0..1_000).filter(|i| down.bypass(&key(*i)) == Some(compat::Bypass::TooManyTries)).count();
    assert!(tired > 700, "{tired}");
    assert!((0..1_000).all(|i| down.owner(&key(i)).unwrap().get() == 0));
    assert!((0..1_000).all(|i| down.owners(&key(i)).count() == 1));
    assert!(compat::nginx().server("a", 0).build().is_err());
}

#[test]
fn large_weights_lose_coinciding_points_in_nginx() {
    let ring =
        (1..5).fold(compat::nginx(), |b, i| b.server(format!("127.0.0.1:900{i}"), 1000)).build().unwrap();
    assert!((639_900..640_000).contains(&ring.points()), "{}", ring.points());
}

fn full_hash(a: u32) -> u32 {
    let w = |x: u64| x & 0xffff_ffff;
    let mut a = u64::from(a);
    a = w(a + 0x7ed5_5d16 + w(a << 12));
    a = w((a ^ 0xc761_c23c) ^ (a >> 19));
    a = w(a + 0x1656_67b1 + w(a << 5));
    a = w(w(a + 0xd3a2_646c) ^ w(a << 9));
    a = w(a + 0xfd70_46c5 + w(a << 3));
    a = w((a ^ 0xb55a_4f09) ^ (a >> 16));
    w(a.wrapping_mul(3_221_225_473)) as u32
}

#[test]
fn f20_haproxy_forms_differ_and_ids_follow_the_list() {
    let sdbm = |key: &[u8]| {
        key.iter().fold(0_u64, |h, c| {
            (u64::from(*c) + (h << 6 & 0xffff_ffff) + (h << 16 & 0xffff_ffff) + (1 << 32) - h) & 0xffff_ffff
        }) as u32
    };
    let djb2 = |key: &[u8]| key.iter().fold(5381_u64, |h, c| (h * 33 + u64::from(*c)) & 0xffff_ffff) as u32;
    type KeyHash = Box<dyn Fn(&[u8]) -> u32>;
    let forms: [(HaproxyHash, KeyHash); 6] = [
        (HaproxyHash::Default, Box::new(move |k| full_hash(sdbm(k)))),
        (HaproxyHash::Bare(HaproxyFunction::Sdbm), Box::new(sdbm)),
        (HaproxyHash::Avalanche(HaproxyFunction::Djb2), Box::new(move |k| full_hash(djb2(k)))),
        (HaproxyHash::Bare(HaproxyFunction::Djb2), Box::new(djb2)),
        (HaproxyHash::Bare(HaproxyFunction::Crc32), Box::new(crc32)),
        (HaproxyHash::Avalanche(HaproxyFunction::Crc32), Box::new(|k| full_hash(crc32(k)))),
    ];
    let servers = [("a", 1, None), ("b", 7, Some(1)), ("c", 256, None), ("d", 0, None), ("e", 3, Some(900))];
    // Read from `show servers state` of a running HAProxy: the counter moves on with every server.
    let ids = [2_u32, 1, 4, 5, 900];
    let mut points: Vec<(u32, usize)> = vec![];
    for (at, (_, weight, _)) in servers.iter().enumerate() {
        points.extend((0..16 * weight).map(|j| (full_hash(ids[at] * 4096 + j), at)));
    }
    points.sort_unstable();
    for (form, hash) in forms {
        let builder = servers.iter().fold(compat::haproxy().hash_type(form), |b, (n, w, id)| match id {
            Some(id) => b.server_id(*n, *w, *id),
            None => b.server(*n, *w),
        });
        let place = builder.build().unwrap();
        for i in 0..KEYS / 10 {
            let h = hash(&key(i));
            let next = points.iter().position(|p| p.0 >= h).unwrap_or(0);
            let before = (next + points.len() - 1) % points.len();
            let nearer = h.wrapping_sub(points[before].0) <= points[next].0.wrapping_sub(h);
            let wanted = points[if nearer { before } else { next }].1;
            assert_eq!(place.owner(&key(i)).unwrap().as_usize(), wanted, "{form:?} key {i}");
        }
    }
    assert!(compat::haproxy().server("a", 257).build().is_err());
    assert!(compat::haproxy().server_id("a", 1, 0).build().is_err());
}

#[test]
fn redis_slots_bit_by_bit() {
    let crc16 = |bytes: &[u8]| {
        bytes.iter().fold(0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte) << 8, |c, _| {
                if c & 0x8000 == 0 { c << 1 } else { (c << 1 ^ 0x1021) & 0xffff }
            })
        })
    };
    let mut rng = Seeded(3);
    for _ in 0..KEYS {
        let bytes: Vec<u8> = (0..rng.below(40)).map(|_| b"{}ab\xff"[rng.below(5) as usize]).collect();
        let text: Vec<char> = bytes.iter().map(|b| char::from(*b)).collect();
        let open = text.iter().position(|c| *c == '{');
        let close = open.and_then(|o| text[o..].iter().position(|c| *c == '}').map(|c| o + c));
        let hashed = match (open, close) {
            (Some(o), Some(c)) if c > o + 1 => &bytes[o + 1..c],
            _ => &bytes[..],
        };
        assert_eq!(u32::from(redis_slot(&bytes)), crc16(hashed) % 16384, "{bytes:?}");
    }
}

#[test]
fn f5_cassandra_sign_extends_the_tail() {
    let mut rng = Seeded(8);
    for _ in 0..KEYS {
        let bytes: Vec<u8> = (0..rng.below(41)).map(|_| rng.next() as u8).collect();
        assert_eq!(cassandra_token(&bytes), murmur3_by_hand(&bytes));
    }
}

/// Written with signed arithmetic throughout, as the servers do in Java.
fn murmur3_by_hand(key: &[u8]) -> i64 {
    let (c1, c2) = (0x87c3_7b91_1142_53d5_u64 as i64, 0x4cf5_ad43_2745_937f_i64);
    let rotl = |x: i64, r: u32| x.rotate_left(r);
    let (mut h1, mut h2) = (0_i64, 0_i64);
    let word = |b: &[u8]| b.iter().rev().fold(0_i64, |v, x| v << 8 | i64::from(*x));
    let blocks = key.len() / 16;
    for i in 0..blocks {
        let (mut k1, mut k2) = (word(&key[i * 16..i * 16 + 8]), word(&key[i * 16 + 8..i * 16 + 16]));
        k1 = rotl(k1.wrapping_mul(c1), 31).wrapping_mul(c2);
        h1 = rotl(h1 ^ k1, 27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        k2 = rotl(k2.wrapping_mul(c2), 33).wrapping_mul(c1);
        h2 = rotl(h2 ^ k2, 31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let tail = &key[blocks * 16..];
    let (mut k1, mut k2) = (0_i64, 0_i64);
    for (i, byte) in tail.iter().enumerate().rev() {
        let signed = i64::from(*byte as i8);
        if i >= 8 {
            k2 ^= signed << ((i - 8) * 8);
        } else {
            k1 ^= signed << (i * 8);
        }
    }
    h2 ^= rotl(k2.wrapping_mul(c2), 33).wrapping_mul(c1);
    h1 ^= rotl(k1.wrapping_mul(c1), 31).wrapping_mul(c2);
    h1 ^= key.len() as i64;
    h2 ^= key.len() as i64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    let mix = |mut k: i64| {
        let shift = |k: i64| ((k as u64) >> 33) as i64;
        k = (k ^ shift(k)).wrapping_mul(0xff51_afd7_ed55_8ccd_u64 as i64);
        k = (k ^ shift(k)).wrapping_mul(0xc4ce_b9fe_1a85_ec53_u64 as i64);
        k ^ shift(k)
    };
    mix(h1).wrapping_add(mix(h2))
}
