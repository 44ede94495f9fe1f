//! The hashes by which web UIs know LoRA files of Kohya's scripts, as their metadata holds them.
//!
//! `sshs_model_hash` is the SHA-256 of all bytes behind the header, `sshs_legacy_hash` the first eight digits of that of the 64 KiB
//! at offset 1 MiB of the file. Their own values are in the header, which is as long whatever they are.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

/// Where the part lies that the short hash is of.
const WINDOW: std::ops::Range<u64> = 0x10_0000..0x11_0000;

/// Keys of the hashes, with texts that are as long.
pub(super) const BLANK: [(&str, usize); 2] = [(MODEL, 64), (LEGACY, 8)];

const MODEL: &str = "sshs_model_hash";
const LEGACY: &str = "sshs_legacy_hash";

/// Takes the bytes of a safetensors file.
#[derive(Default)]
pub(super) struct Hashes {
    position: u64,
    /// The number in front, which is the length of the header.
    length: Vec<u8>,
    model: Sha256,
    legacy: Sha256,
}

impl Hashes {
    /// Values of the keys.
    pub fn finish(self) -> [(&'static str, String); 2] {
        let hex = |hash: Sha256| -> String { hash.finalize().iter().map(|b| format!("{b:02x}")).collect() };
        let mut legacy = hex(self.legacy);
        legacy.truncate(8);
        [(MODEL, hex(self.model)), (LEGACY, legacy)]
    }

    /// The part of `bytes`, which are the next of the file, in `range`.
    fn part<'a>(&self, bytes: &'a [u8], range: std::ops::Range<u64>) -> &'a [u8] {
        let at = |place: u64| (place.saturating_sub(self.position) as usize).min(bytes.len());
        &bytes[at(range.start)..at(range.end)]
    }
}

impl Write for Hashes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let missing = 8 - self.length.len();
        self.length.extend(bytes.iter().take(missing));
        if let Ok(length) = <[u8; 8]>::try_from(self.length.as_slice()) {
            let start = 8 + u64::from_le_bytes(length);
            self.model.update(self.part(bytes, start..u64::MAX));
        }
        self.legacy.update(self.part(bytes, WINDOW));
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(file: &[u8], at_once: usize) -> [String; 2] {
        let mut hashes = Hashes::default();
        file.chunks(at_once)
            .for_each(|part| hashes.write_all(part).unwrap());
        hashes.finish().map(|(_, value)| value)
    }

    /// The digests are those of Python's hashlib.
    #[test]
    fn only_what_they_are_of_counts() {
        let mut file = 3_u64.to_le_bytes().to_vec();
        file.extend_from_slice(b"{} abc");
        for at_once in [1, 5, 1000] {
            let [model, legacy] = hashes(&file, at_once);
            assert_eq!(
                model,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
            );
            assert_eq!(legacy, "e3b0c442", "of nothing");
        }
        // 'x' in the window, zeros elsewhere.
        file.resize(0x10_0000, 0);
        file.resize(0x11_0000, b'x');
        let [_, legacy] = hashes(&file, 4096 + 7);
        file.resize(0x12_0000, b'y');
        assert_eq!(hashes(&file, 1 << 16)[1], legacy);
        let expected = Sha256::digest(vec![b'x'; 0x1_0000]);
        assert_eq!(
            legacy,
            format!(
                "{:02x}{:02x}{:02x}{:02x}",
                expected[0], expected[1], expected[2], expected[3]
            )
        );
    }
}
