//! What a kernel module says about itself: the `.modinfo` section of its ELF file.
//!
//! In: the module's (unpacked) bytes. Out: which modules it needs, which it wants loaded before it,
//! and the names it goes by. This is where `depmod` gets `modules.dep` from; the package does not
//! contain that file and a fresh machine need not have `depmod`, so the source is read instead.

/// The part of `.modinfo` that decides load order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ModInfo {
    /// Names of modules whose symbols it uses.
    pub depends: Vec<String>,
    /// Names or aliases that it asks to be loaded first (`softdep=pre: …`).
    pub soft_before: Vec<String>,
    /// Other names that it answers to.
    pub aliases: Vec<String>,
}

/// Reads it; the error says what is wrong with the file.
pub(crate) fn read(elf: &[u8]) -> Result<ModInfo, &'static str> {
    let section = modinfo_section(elf)?;
    let mut info = ModInfo::default();
    for entry in section.split(|byte| *byte == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else { continue };
        match entry.split_once('=') {
            Some(("depends", names)) => {
                info.depends.extend(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
            }
            Some(("softdep", text)) => info.soft_before.extend(soft_before(text)),
            Some(("alias", name)) => info.aliases.push(name.to_owned()),
            _ => {}
        }
    }
    Ok(info)
}

/// The words after `pre:`, up to `post:`.
fn soft_before(text: &str) -> impl Iterator<Item = String> {
    let before = text.split_once("pre:").map_or("", |(_, after)| after);
    let before = before.split_once("post:").map_or(before, |(before, _)| before);
    before.split_whitespace().map(str::to_owned)
}

const NOT_A_MODULE: &str = "not a 64-bit ELF file with section .modinfo";

fn modinfo_section(elf: &[u8]) -> Result<&[u8], &'static str> {
    // EI_CLASS 2 is 64 bit, EI_DATA 1 is little endian.
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return Err(NOT_A_MODULE);
    }
    let header = |index: u64| -> Option<&[u8]> {
        let start = number::<8>(elf, 0x28)?.checked_add(index.checked_mul(number::<2>(elf, 0x3a)?)?)?;
        slice(elf, start, 0x40)
    };
    let body = |header: &[u8]| -> Option<&[u8]> { slice(elf, number::<8>(header, 0x18)?, number::<8>(header, 0x20)?) };
    let find = || -> Option<&[u8]> {
        let names = body(header(number::<2>(elf, 0x3e)?)?)?;
        (0..number::<2>(elf, 0x3c)?).filter_map(header).find_map(|header| {
            let name = names.get(usize::try_from(number::<4>(header, 0)?).ok()?..)?;
            name.starts_with(b".modinfo\0").then(|| body(header))?
        })
    };
    find().ok_or(NOT_A_MODULE)
}

/// A little-endian number of `N` bytes.
fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..)?.first_chunk::<N>()?;
    Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(offset).ok()?..)?.get(..usize::try_from(length).ok()?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest ELF file that has a `.modinfo` section.
    pub(crate) fn module(info: &[&str]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let text: Vec<u8> = info.iter().flat_map(|entry| entry.bytes().chain([0])).collect();
        let mut elf = vec![0; 0x40];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let section = |name: u32, offset: usize, length: usize| {
            let mut header = vec![0; 0x40];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            header
        };
        let headers = [section(0, 0, 0), section(1, 0x40, text.len()), section(10, 0x40 + text.len(), names.len())];
        elf.extend_from_slice(&text);
        elf.extend_from_slice(names);
        let table = elf.len() as u64;
        elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        elf[0x3a..0x3c].copy_from_slice(&0x40_u16.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&3_u16.to_le_bytes());
        elf[0x3e..0x40].copy_from_slice(&2_u16.to_le_bytes());
        elf.extend(headers.concat());
        elf
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let elf = module(&[
            "license=GPL",
            "softdep=pre: crypto-crc32c other post: later",
            "depends=jbd2,crc16",
            "alias=fs-ext3",
        ]);
        let info = read(&elf).expect("a module");
        assert_eq!(info.depends, ["jbd2", "crc16"]);
        assert_eq!(info.soft_before, ["crypto-crc32c", "other"]);
        assert_eq!(info.aliases, ["fs-ext3"]);
        assert_eq!(read(&module(&["depends="])).expect("a module"), ModInfo::default());
    }

    #[test]
    fn a_cut_or_foreign_file_is_refused() {
        let elf = module(&["depends=a"]);
        for length in 0..elf.len() {
            assert!(read(&elf[..length]).is_err(), "cut at {length}");
        }
        assert!(read(b"#!/bin/sh\n").is_err());
    }
}
