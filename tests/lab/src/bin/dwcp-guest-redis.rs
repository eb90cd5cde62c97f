//! The work of a guest with Redis: JSON values, read, checked and written anew, for ever.
//!
//! In: `SOCKET SERIAL VALUES CHANGES_PER_S`. Out, on the serial port: `WORKING` once all values are stored,
//! then `WORK N` about once a second, N being the values read, found right and replaced so far, and `WORK
//! BAD …` for a value that is not what was written. Plain std, so that it can be built as one static file by
//! the compiler alone.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Requests under way at once while values are stored.
const PIPELINE: usize = 200;
/// A reply that claims to be longer is none of Redis'.
const REPLY_BYTES_MAX: usize = 1 << 20;
const WORDS: [&str; 32] = [
    "account",
    "address",
    "balance",
    "basket",
    "channel",
    "comment",
    "country",
    "delivery",
    "discount",
    "email",
    "invoice",
    "language",
    "location",
    "manager",
    "message",
    "number",
    "order",
    "payment",
    "pending",
    "product",
    "quantity",
    "region",
    "request",
    "return",
    "session",
    "shipping",
    "status",
    "street",
    "summary",
    "ticket",
    "update",
    "warehouse",
];

/// xorshift64 (Marsaglia 2003).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
}

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A customer's record: names and numbers as such records have, words of a text, a token that nothing
/// compresses, and last of all the checksum of what stands before it.
fn record(id: u64, version: u64, rng: &mut Rng) -> String {
    let mut text = format!(
        "{{\"id\":{id},\"version\":{version},\"email\":\"user{id}@host{}.example.org\",\"active\":{},\
         \"created\":{},\"token\":\"",
        rng.below(500),
        rng.below(2) == 1,
        1_600_000_000 + rng.below(100_000_000),
    );
    for _ in 0..8 {
        let _ = write!(text, "{:016x}", rng.next());
    }
    text.push_str("\",\"orders\":[");
    for order in 0..4 + rng.below(8) {
        let separator = if order == 0 { "" } else { "," };
        let _ = write!(
            text,
            "{separator}{{\"sku\":\"{:08x}\",\"quantity\":{},\"price\":{}.{:02},\"state\":\"{}\"}}",
            rng.below(1 << 32),
            1 + rng.below(9),
            rng.below(1000),
            rng.below(100),
            WORDS[rng.below(32) as usize],
        );
    }
    text.push_str("],\"note\":\"");
    for _ in 0..40 + rng.below(80) {
        text.push_str(WORDS[rng.below(32) as usize]);
        text.push(' ');
    }
    text.push_str("\",\"sum\":\"");
    let sum = checksum(text.as_bytes());
    let _ = write!(text, "{sum:016x}\"}}");
    text
}

/// Whether a value is what [`record`] wrote for this number.
fn is_right(id: u64, value: &[u8]) -> bool {
    let Some((body, end)) = value.split_at_checked(value.len().wrapping_sub(18)) else {
        return false;
    };
    body.starts_with(format!("{{\"id\":{id},").as_bytes())
        && end == format!("{:016x}\"}}", checksum(body)).as_bytes()
}

/// A connection to Redis. Protocol: "Redis serialization protocol specification".
struct Redis {
    reader: BufReader<UnixStream>,
}

impl Redis {
    fn connect(path: &str) -> io::Result<Self> {
        let reader = BufReader::new(UnixStream::connect(path)?);
        Ok(Self { reader })
    }

    fn send(&mut self, requests: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(requests)
    }

    /// A reply's text, or the bytes of the value it holds.
    fn reply(&mut self) -> io::Result<Vec<u8>> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let line = line.trim_end();
        let Some(length) = line.strip_prefix('$') else {
            return Ok(line.as_bytes().to_vec());
        };
        let length = length.parse().ok().filter(|n| *n <= REPLY_BYTES_MAX);
        let length: usize = length.ok_or_else(|| io::Error::other(format!("no value: {line}")))?;
        let mut value = vec![0; length + 2];
        self.reader.read_exact(&mut value)?;
        value.truncate(length);
        Ok(value)
    }
}

fn request(out: &mut Vec<u8>, words: &[&str]) {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        let _ = write!(text, "${}\r\n{word}\r\n", word.len());
    }
    out.extend(text.as_bytes());
}

fn key(id: u64) -> String {
    format!("customer:{id:06}")
}

fn fill(redis: &mut Redis, values: u64, rng: &mut Rng) -> io::Result<()> {
    let ids: Vec<u64> = (0..values).collect();
    for ids in ids.chunks(PIPELINE) {
        let mut requests = Vec::new();
        for id in ids {
            request(&mut requests, &["SET", &key(*id), &record(*id, 0, rng)]);
        }
        redis.send(&requests)?;
        for _ in ids {
            let reply = redis.reply()?;
            if reply != b"+OK" {
                return Err(io::Error::other(
                    String::from_utf8_lossy(&reply).into_owned(),
                ));
            }
        }
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, serial, values, changes_per_s] = &arguments[..] else {
        return Err(io::Error::other("SOCKET SERIAL VALUES CHANGES_PER_S"));
    };
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    let (values, changes_per_s) = (number(values)?.max(1), number(changes_per_s)?.max(1));
    let mut serial = OpenOptions::new().write(true).open(serial)?;
    let mut redis = Redis::connect(socket)?;
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    fill(&mut redis, values, &mut rng)?;
    serial.write_all(b"WORKING\n")?;
    let pause = Duration::from_micros(1_000_000 / changes_per_s);
    let mut due = Instant::now();
    for version in 1.. {
        let id = rng.below(values);
        let mut get = Vec::new();
        request(&mut get, &["GET", &key(id)]);
        redis.send(&get)?;
        if !is_right(id, &redis.reply()?) {
            serial.write_all(format!("WORK BAD {}\n", key(id)).as_bytes())?;
        }
        let mut set = Vec::new();
        request(&mut set, &["SET", &key(id), &record(id, version, &mut rng)]);
        redis.send(&set)?;
        redis.reply()?;
        if version.is_multiple_of(changes_per_s) {
            serial.write_all(format!("WORK {version}\n").as_bytes())?;
        }
        // What a slow machine owes is let go, never made up for.
        due = (due + pause).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_right_and_every_damage_is_seen() {
        let mut rng = Rng(7);
        let value = record(12, 3, &mut rng).into_bytes();
        assert!(is_right(12, &value));
        assert!(!is_right(1, &value), "another's record");
        for at in (0..value.len()).step_by(37) {
            let mut damaged = value.clone();
            damaged[at] ^= 1;
            assert!(!is_right(12, &damaged), "byte {at}");
        }
        assert!(!is_right(12, &value[..value.len() - 1]) && !is_right(12, b""));
    }
}
