//! A small reader of JSON for serde.
//!
//! A policy's config is a short text that the host itself has written, and with `serde_json` more
//! than half of a module was that crate and what it draws in: formats of numbers, errors of
//! readers, counts of lines. This reader names the key at fault instead of a column, and it refuses
//! keys that nothing reads, which serde leaves to each author to remember.
//!
//! A type pays only for what it asks for: without a fraction among its fields, the parser of
//! fractions and its tables are not linked. That is why the kinds of numbers are told apart here.
//!
//! It reads all of JSON. It does not refuse every text that JSON does not allow, such as a number
//! with leading zeros.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::CowStrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Expected, MapAccess, SeqAccess};
use serde::de::{Unexpected, VariantAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

/// Reads a value that takes up the whole text.
pub(crate) fn from_str<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Error> {
    let mut json = Json { rest: text };
    let value = T::deserialize(&mut json)?;
    if json.peek().is_some() {
        return Err(json.expected("the end"));
    }
    Ok(value)
}

/// What is left to read.
struct Json<'de> {
    rest: &'de str,
}

impl<'de> Json<'de> {
    /// The next character that is no space. Everything that is looked for is ASCII.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.rest.bytes().next()
    }

    /// Takes this token if it comes next.
    fn take(&mut self, token: &str) -> bool {
        self.peek();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Takes this token, or says what was expected.
    fn expect(&mut self, token: &str, what: &str) -> Result<(), Error> {
        if self.take(token) { Ok(()) } else { Err(self.expected(what)) }
    }

    /// Takes as many characters as satisfy the condition.
    fn take_while(&mut self, condition: impl Fn(char) -> bool) -> &'de str {
        let end = self.rest.find(|c| !condition(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    /// Takes whatever character comes next.
    fn next(&mut self) -> Option<char> {
        let mut rest = self.rest.chars();
        let next = rest.next();
        self.rest = rest.as_str();
        next
    }

    fn number(&mut self) -> Result<&'de str, Error> {
        self.peek();
        let is_part = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
        let number = self.take_while(is_part);
        if number.is_empty() { Err(self.expected("a number")) } else { Ok(number) }
    }

    /// A string, borrowed from the text unless it has an escape in it.
    fn string(&mut self) -> Result<Cow<'de, str>, Error> {
        self.expect("\"", "a string")?;
        let plain = self.take_while(|c| c != '"' && c != '\\');
        if let Some(rest) = self.rest.strip_prefix('"') {
            self.rest = rest;
            return Ok(Cow::Borrowed(plain));
        }
        let mut string = plain.to_owned();
        loop {
            match self.next() {
                Some('"') => return Ok(Cow::Owned(string)),
                Some('\\') => string.push(self.escaped()?),
                Some(plain) => string.push(plain),
                None => return Err(self.expected("the end of a string")),
            }
        }
    }

    fn escaped(&mut self) -> Result<char, Error> {
        Ok(match self.next() {
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some(plain @ ('"' | '\\' | '/')) => plain,
            Some('u') => return self.unicode(),
            _ => return Err(self.expected("an escape")),
        })
    }

    /// Four hexadecimal digits, or two such for what UTF-16 writes as a pair.
    fn unicode(&mut self) -> Result<char, Error> {
        let mut code = self.hexadecimal()?;
        if (0xd800..0xdc00).contains(&code)
            && let Some(rest) = self.rest.strip_prefix("\\u")
        {
            self.rest = rest;
            let low = self.hexadecimal()?.wrapping_sub(0xdc00);
            // What is no low half leads to no character.
            code = if low < 0x400 { 0x1_0000 + ((code - 0xd800) << 10) + low } else { code };
        }
        char::from_u32(code).ok_or_else(|| self.expected("a character"))
    }

    fn hexadecimal(&mut self) -> Result<u32, Error> {
        let mut number = 0;
        for _ in 0..4 {
            let digit = self.next().and_then(|digit| digit.to_digit(16));
            number = number << 4 | digit.ok_or_else(|| self.expected("a hexadecimal digit"))?;
        }
        Ok(number)
    }

    fn expected(&self, what: &str) -> Error {
        match self.rest.chars().next() {
            Some(found) => Error(format!("expected {what}, found `{found}`")),
            None => Error(format!("expected {what}, found the end")),
        }
    }
}

/// Each hands what comes next to a visitor, or says that something else does.
impl<'de> Json<'de> {
    /// Whatever comes next; what to do with a number depends on who asks.
    fn visit_value<V: Visitor<'de>>(
        &mut self,
        visitor: V,
        visit_number: fn(&mut Self, V) -> Result<V::Value, Error>,
    ) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'"') => self.visit_string(visitor),
            Some(b'[') => self.visit_list(visitor),
            Some(b'{') => self.visit_table(None, visitor),
            Some(b't' | b'f') => self.visit_bool(visitor),
            Some(b'n') => self.visit_null(visitor),
            _ => visit_number(self, visitor),
        }
    }

    fn visit_null<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        self.expect("null", "null")?;
        visitor.visit_unit()
    }

    fn visit_bool<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        let value = self.take("true");
        if !value {
            self.expect("false", "true or false")?;
        }
        visitor.visit_bool(value)
    }

    fn visit_integer<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        let number = self.number()?;
        if let Ok(integer) = number.parse() {
            return visitor.visit_u64(integer);
        }
        match number.parse() {
            Ok(integer) => visitor.visit_i64(integer),
            Err(_) => Err(Error(format!("expected {}, found {number}", &visitor as &dyn Expected))),
        }
    }

    fn visit_fraction<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        match self.number()?.parse() {
            Ok(fraction) => visitor.visit_f64(fraction),
            Err(_) => Err(self.expected("a number")),
        }
    }

    fn visit_string<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        match self.string()? {
            Cow::Borrowed(string) => visitor.visit_borrowed_str(string),
            Cow::Owned(string) => visitor.visit_string(string),
        }
    }

    fn visit_list<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        self.expect("[", "a list")?;
        let value = visitor.visit_seq(Items { json: self, is_first: true })?;
        self.expect("]", "the end of a list")?;
        Ok(value)
    }

    /// A table whose keys are all among the known ones, if any are given.
    fn visit_table<V: Visitor<'de>>(
        &mut self,
        known: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.expect("{", "a table")?;
        let key = Cow::Borrowed("");
        let value = visitor.visit_map(Entries { json: self, known, key, is_first: true })?;
        self.expect("}", "the end of a table")?;
        Ok(value)
    }
}

/// Forwards each method to a visit of that name.
macro_rules! forward {
    ($($method:ident)* => $visit:ident) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.$visit(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Json<'de> {
    type Error = Error;

    forward! { deserialize_unit => visit_null }
    forward! { deserialize_bool => visit_bool }
    forward! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 => visit_integer
    }
    forward! { deserialize_f32 deserialize_f64 => visit_fraction }
    forward! {
        deserialize_char deserialize_str deserialize_string deserialize_identifier => visit_string
    }
    forward! { deserialize_seq => visit_list }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit_value(visitor, |json, visitor| {
            let mut ahead = Json { rest: json.rest };
            if ahead.number()?.contains(['.', 'e', 'E']) {
                return json.visit_fraction(visitor);
            }
            json.visit_integer(visitor)
        })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit_value(visitor, |json, visitor| {
            json.number()?;
            visitor.visit_unit()
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.take("null") { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.visit_list(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit_table(None, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.visit_table(Some(fields), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.peek() == Some(b'"') {
            return visitor.visit_enum(CowStrDeserializer::new(self.string()?));
        }
        self.expect("{", "a string or a table")?;
        let value = visitor.visit_enum(&mut *self)?;
        self.expect("}", "the end of a table")?;
        Ok(value)
    }

    forward_to_deserialize_any! { i128 u128 bytes byte_buf unit_struct tuple_struct }
}

/// The items of a list that is being read.
struct Items<'a, 'de> {
    json: &'a mut Json<'de>,
    is_first: bool,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.json.peek() == Some(b']') {
            return Ok(None);
        }
        if !std::mem::take(&mut self.is_first) {
            self.json.expect(",", "a comma")?;
        }
        seed.deserialize(&mut *self.json).map(Some)
    }
}

/// The entries of a table that is being read, and the key whose value comes next.
struct Entries<'a, 'de> {
    json: &'a mut Json<'de>,
    known: Option<&'static [&'static str]>,
    key: Cow<'de, str>,
    is_first: bool,
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        if self.json.peek() == Some(b'}') {
            return Ok(None);
        }
        if !std::mem::take(&mut self.is_first) {
            self.json.expect(",", "a comma")?;
        }
        self.key = self.json.string()?;
        if let Some(known) = self.known.filter(|known| !known.contains(&&*self.key)) {
            return Err(Error::unknown_key(&self.key, known));
        }
        seed.deserialize(CowStrDeserializer::new(self.key.clone())).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        self.json.expect(":", "a colon")?;
        seed.deserialize(&mut *self.json).map_err(|error| error.in_key(&self.key))
    }
}

/// An enum's variant that holds something: a table with the variant's name as its only key.
impl<'de> EnumAccess<'de> for &mut Json<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Error> {
        let variant = seed.deserialize(CowStrDeserializer::new(self.string()?))?;
        self.expect(":", "a colon")?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Json<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        self.expect("null", "null")
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.visit_list(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.visit_table(Some(fields), visitor)
    }
}

/// What is wrong, in one line for an operator.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Error(String);

impl Error {
    fn unknown_key(key: &str, known: &[&str]) -> Self {
        if known.is_empty() {
            return Self(format!("unknown key `{key}`, none are taken"));
        }
        let mut message = format!("unknown key `{key}`, expected ");
        for (index, known) in known.iter().enumerate() {
            message.push_str(if index == 0 { "`" } else { " or `" });
            message.push_str(known);
            message.push('`');
        }
        Self(message)
    }

    fn in_key(self, key: &str) -> Self {
        Self(format!("{key}: {self}"))
    }

    /// serde's own words for this draw the formatting of fractions into every module.
    fn unexpected(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        match found {
            Unexpected::Unsigned(found) => Self(format!("expected {expected}, found {found}")),
            Unexpected::Signed(found) => Self(format!("expected {expected}, found {found}")),
            Unexpected::Str(found) => Self(format!("expected {expected}, found `{found}`")),
            _ => Self(format!("expected {expected}")),
        }
    }
}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::unexpected(found, expected)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::unexpected(found, expected)
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
