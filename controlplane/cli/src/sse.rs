//! Reads a stream of server-sent events (WHATWG HTML, section 9.2).
//!
//! In: chunks of bytes, cut anywhere. Out: the data of each event. Promise: at most [`LINE_BYTES_MAX`]
//! of a line and as much of an event are kept.

/// Longest line, and longest event, taken.
const LINE_BYTES_MAX: usize = 1 << 20;

/// The stream sends more than anybody should.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane sent an event of more than {LINE_BYTES_MAX} bytes")]
pub struct TooLong;

/// What is left of the stream between two chunks.
#[derive(Default)]
pub struct Parser {
    line: Vec<u8>,
    data: String,
}

impl Parser {
    /// Takes a chunk and returns the data of the events that it ended.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut events = Vec::new();
        for byte in chunk {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > LINE_BYTES_MAX {
                    return Err(TooLong);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line =
                String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line)).into_owned();
            if line.is_empty() {
                if !self.data.is_empty() {
                    events.push(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
                if self.data.len() > LINE_BYTES_MAX {
                    return Err(TooLong);
                }
            }
            // Comments, `event:` and `id:` say nothing that the data does not.
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": alive\n\nevent: migration\nid: 1\ndata: {\"a\":1}\n\ndata:x\r\ndata: y\r\n\r\n:\n\nid: 3\n\ndata: é\n\nrest";

    #[test]
    fn events_are_the_same_wherever_the_stream_is_cut() {
        let bytes = STREAM.as_bytes();
        for cut in 0..=bytes.len() {
            let mut parser = Parser::default();
            let mut events = parser.push(&bytes[..cut]).unwrap();
            events.extend(parser.push(&bytes[cut..]).unwrap());
            assert_eq!(events, ["{\"a\":1}", "x\ny", "é"], "cut at {cut}");
        }
    }

    #[test]
    fn a_stream_without_an_end_is_refused() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(&vec![b'x'; LINE_BYTES_MAX + 1]), Err(TooLong));
        let mut parser = Parser::default();
        let line = format!("data: {}\n", "y".repeat(LINE_BYTES_MAX / 2));
        parser.push(line.as_bytes()).unwrap();
        assert_eq!(
            parser
                .push(line.as_bytes())
                .and_then(|_| parser.push(line.as_bytes())),
            Err(TooLong)
        );
    }
}
