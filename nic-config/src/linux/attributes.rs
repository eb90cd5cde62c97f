//! Netlink attributes: written one after another, and looked up by number.
//!
//! In: bytes after a message's fixed header. Out: values. Promise: each length is checked before it is
//! used; an attribute that is not asked for does no harm, so newer kernels are understood.

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NlaBuffer, NlasIterator};

/// Attributes in the making.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Adds a number.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, value.to_ne_bytes().to_vec())
    }

    /// Adds a text with the zero that ends it.
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, bytes)
    }

    /// Adds an attribute whose presence is its value, if `set`.
    pub fn flag(self, kind: u16, set: bool) -> Self {
        if set {
            self.bytes(kind, Vec::new())
        } else {
            self
        }
    }

    /// Adds attributes within an attribute.
    pub fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, inner.0)
    }

    fn bytes(mut self, kind: u16, value: Vec<u8>) -> Self {
        let attribute = DefaultNla::new(kind, value);
        let start = self.0.len();
        self.0.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut self.0[start..]);
        self
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Attributes that came.
#[derive(Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The attributes after a fixed header of `header` bytes.
    pub fn after(message: &'a [u8], header: usize) -> Self {
        Self(message.get(header..).unwrap_or_default())
    }

    /// Each attribute's number and value; the end of what is well-formed is the end.
    pub fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        NlasIterator::new(self.0).map_while(|attribute| {
            let attribute: NlaBuffer<&'a [u8]> = attribute.ok()?;
            let length = usize::from(attribute.length());
            let value = attribute.into_inner().get(4..length)?;
            Some((attribute.kind(), value))
        })
    }

    /// The value of an attribute.
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.all()
            .find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// A number.
    pub fn u32(self, kind: u16) -> Option<u32> {
        let bytes = self.get(kind)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    }

    /// A text.
    pub fn text(self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0);
        let bytes = &bytes[..end.unwrap_or(bytes.len())];
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The attributes within an attribute.
    pub fn nest(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes = Writer::default()
            .u32(1, 9000)
            .nest(
                2,
                Writer::default()
                    .text(1, "eth0")
                    .flag(3, true)
                    .flag(4, false),
            )
            .finish();
        let reader = Reader::after(&bytes, 0);
        assert_eq!(reader.u32(1), Some(9000));
        let inner = reader.nest(2).unwrap();
        assert_eq!(inner.text(1).as_deref(), Some("eth0"));
        assert!(inner.get(3).is_some() && inner.get(4).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_are_trouble(bytes in prop::collection::vec(any::<u8>(), 0..64), header in 0usize..80) {
            let reader = Reader::after(&bytes, header);
            let total: usize = reader.all().map(|(_, value)| value.len() + 4).sum();
            prop_assert!(total <= bytes.len());
            let _ = (reader.u32(1), reader.text(2), reader.nest(3).map(|inner| inner.u32(1)));
        }
    }
}
