//! The outline of a module: everything but what its functions do.
//!
//! A module is checked as the component that comes of it, and what has to be known for that is all
//! in its types. Compiling its code for the check, and then again as the module that is run, would
//! take twice the time of what takes longest in loading.
//!
//! From the WebAssembly Core Specification, "Binary Format": modules, sections, and numbers in
//! LEB128.

/// Where the sections begin: after four bytes of magic and four of version.
const HEADER_BYTES: usize = 8;
const CODE_SECTION: u8 = 10;
/// A body of three bytes: no locals, `unreachable`, `end`.
const BODY: [u8; 4] = [3, 0x00, 0x00, 0x0b];

/// The same module with functions that only trap; `None` if it is not put together as a module is.
pub(crate) fn outline(module: &[u8]) -> Option<Vec<u8>> {
    let (header, mut rest) = module.split_at_checked(HEADER_BYTES)?;
    let mut outline = header.to_vec();
    while let Some((&id, section)) = rest.split_first() {
        let (size, section) = take_number(section)?;
        let (content, next) = section.split_at_checked(size as usize)?;
        outline.push(id);
        if id == CODE_SECTION {
            let (functions, _) = take_number(content)?;
            put_sized(&bodies(functions), &mut outline);
        } else {
            put_sized(content, &mut outline);
        }
        rest = next;
    }
    Some(outline)
}

fn bodies(functions: u32) -> Vec<u8> {
    let mut bodies = Vec::new();
    put_number(functions, &mut bodies);
    bodies.extend((0..functions).flat_map(|_| BODY));
    bodies
}

fn put_sized(content: &[u8], to: &mut Vec<u8>) {
    // What is larger than this has been refused long before.
    put_number(u32::try_from(content.len()).unwrap_or(u32::MAX), to);
    to.extend_from_slice(content);
}

fn put_number(mut number: u32, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// The number that bytes begin with, and what follows it.
fn take_number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut number = 0;
    for (place, &byte) in bytes.iter().enumerate().take(5) {
        number |= u32::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[place + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_as_it_was_written() {
        for number in [0, 1, 127, 128, 300, 65_536, u32::MAX] {
            let mut bytes = Vec::new();
            put_number(number, &mut bytes);
            bytes.push(7);
            assert_eq!(take_number(&bytes), Some((number, &[7][..])));
        }
        assert_eq!(take_number(&[0x80, 0x80]), None);
    }

    #[test]
    fn an_outline_has_the_types_and_none_of_the_code() {
        let text = |body: &str| {
            format!(
                r#"(module (import "a" "b" (func)) (memory 1) (data (i32.const 0) "x")
                    (func (export "f") (param i32) (result i32) {body})
                    (func (export "g") {body}))"#
            )
        };
        let real = text("(local i64) (drop (i32.add (i32.const 1) (i32.const 2))) unreachable");
        let real = outline(&wat::parse_str(real).unwrap()).unwrap();
        assert_eq!(real, wat::parse_str(text("unreachable")).unwrap());
    }

    #[test]
    fn what_ends_early_has_no_outline() {
        let module = wat::parse_str(r#"(module (func (export "f")))"#).unwrap();
        assert_eq!(outline(&module[..module.len() - 1]), None);
        assert_eq!(outline(b"\0asm"), None);
    }
}
