//! Variable length integers: LEB128, seven bits a byte, low bits first.
//!
//! In: `u64` values or untrusted bytes. Out: bytes or values. Promises: [`Reader`] never reads past
//! its input, refuses encodings that are longer than needed or overflow 64 bits, and never panics.

/// The bytes [`put`] appends for `value`: 1 to 10.
pub(super) const fn len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends `value`.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Maps small values of either sign to small unsigned values.
pub(super) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Inverse of [`zigzag`].
pub(super) const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// A cursor over untrusted bytes. Every method answers `None` at the end or on a bad encoding.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What was not read yet.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                return None;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                // One value, one encoding: a zero last byte would be a second one.
                return (shift == 0 || byte != 0).then_some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_come_back(values in proptest::collection::vec(any::<u64>(), 0..40), shift in 0u32..64) {
            let mut bytes = Vec::new();
            let mut expected = 0;
            for &value in &values {
                put(&mut bytes, value >> shift);
                expected += len(value >> shift);
            }
            prop_assert_eq!(bytes.len(), expected);
            let mut reader = Reader::new(&bytes);
            for &value in &values {
                prop_assert_eq!(reader.varint(), Some(value >> shift));
            }
            prop_assert!(reader.is_empty());
            prop_assert_eq!(reader.varint(), None);
        }

        #[test]
        fn zigzag_comes_back(value in any::<i64>()) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
        }
    }

    #[test]
    fn refuses_long_and_overflowing_encodings() {
        assert_eq!(Reader::new(&[0x80, 0x00]).varint(), None);
        assert_eq!(Reader::new(&[0xff; 9]).varint(), None);
        let mut overflow = [0xff; 10];
        overflow[9] = 0x02;
        assert_eq!(Reader::new(&overflow).varint(), None);
        overflow[9] = 0x01;
        assert_eq!(Reader::new(&overflow).varint(), Some(u64::MAX));
    }
}
