//! What a config may hold, as a JSON schema.
//!
//! A type that can be deserialized knows its keys and what each is read as, but tells nobody: it
//! asks a deserializer for them. So this one answers every question with something plausible, and
//! writes down what was asked. A type is asked several times, because one answer does not show
//! everything: an enum gets another variant each time, a key that turns out to be another name of
//! one before it is left out, and a key without which there is no value is required.
//!
//! What a type checks beyond that (a range, a pair of keys that exclude each other) is not seen.

use std::fmt::{self, Write};

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, MapAccess};
use serde::de::{SeqAccess, Unexpected, VariantAccess, Visitor};

/// Times that a type is asked; a bound, for types that never come to an end.
const QUESTIONS_MAX: usize = 64;
/// How deep a type is followed that contains itself.
const DEPTH_MAX: usize = 8;

/// The schema of a config.
pub(crate) fn of<C: DeserializeOwned>() -> String {
    let mut root = Node::default();
    for turn in 0..QUESTIONS_MAX {
        let plan = Plan { turn, is_minimal: false, depth: 0 };
        let outcome = C::deserialize(Probe { node: &mut root, plan });
        let is_new = matches!(outcome, Err(Error::Learned));
        if !is_new && turn + 1 >= root.variants() {
            break;
        }
    }
    for _ in 0..QUESTIONS_MAX {
        let plan = Plan { turn: 0, is_minimal: true, depth: 0 };
        if !matches!(C::deserialize(Probe { node: &mut root, plan }), Err(Error::Learned)) {
            break;
        }
    }
    let mut text = String::from(r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","#);
    root.write(&mut text);
    text.push('}');
    text
}

/// What is known of a value.
#[derive(Default)]
struct Node {
    kind: Kind,
    is_nullable: bool,
}

#[derive(Default)]
enum Kind {
    /// Never asked for, or anything will do.
    #[default]
    Any,
    Null,
    Bool,
    Integer {
        min: i64,
        max: u64,
    },
    Fraction,
    Text,
    List(Box<Node>),
    Tuple(Vec<Node>),
    /// A table of fixed keys.
    Table(Vec<Field>),
    /// A table of any keys.
    Map(Box<Node>),
    /// One of several: a plain name, or a table with the name as its only key.
    Choice(Vec<(&'static str, Option<Node>)>),
}

struct Field {
    name: &'static str,
    node: Node,
    is_required: bool,
    /// Whether it is another name of a field before it.
    is_alias: bool,
}

impl Node {
    /// How many variants the largest enum in it has.
    fn variants(&self) -> usize {
        match &self.kind {
            Kind::List(node) | Kind::Map(node) => node.variants(),
            Kind::Tuple(nodes) => nodes.iter().map(Self::variants).max().unwrap_or(0),
            Kind::Table(fields) => fields.iter().map(|it| it.node.variants()).max().unwrap_or(0),
            Kind::Choice(choices) => {
                let inner = choices.iter().flat_map(|(_, node)| node).map(Self::variants);
                inner.max().unwrap_or(0).max(choices.len())
            }
            _ => 0,
        }
    }

    /// Notes what was asked for, unless it has been asked for before.
    fn learn(&mut self, kind: Kind) {
        if matches!(self.kind, Kind::Any) {
            self.kind = kind;
        }
    }

    /// Writes the members of the schema, without the braces around them.
    fn write(&self, text: &mut String) {
        match &self.kind {
            Kind::Any => {
                let _ = write!(text, r#""description":"anything""#);
            }
            Kind::Null => self.write_type(text, "null"),
            Kind::Bool => self.write_type(text, "boolean"),
            Kind::Integer { min, max } => {
                self.write_type(text, "integer");
                let _ = write!(text, r#","minimum":{min},"maximum":{max}"#);
            }
            Kind::Fraction => self.write_type(text, "number"),
            Kind::Text => self.write_type(text, "string"),
            Kind::List(node) => {
                self.write_type(text, "array");
                write_inner(text, "items", node);
            }
            Kind::Tuple(nodes) => {
                self.write_type(text, "array");
                text.push_str(r#","prefixItems":"#);
                write_all(text, "[]", nodes, |text, node| {
                    text.push('{');
                    node.write(text);
                    text.push('}');
                });
                let _ = write!(text, r#","minItems":{},"items":false"#, nodes.len());
            }
            Kind::Table(fields) => self.write_table(text, fields),
            Kind::Map(node) => {
                self.write_type(text, "object");
                write_inner(text, "additionalProperties", node);
            }
            Kind::Choice(choices) => self.write_choice(text, choices),
        }
    }

    fn write_type(&self, text: &mut String, name: &str) {
        let _ = if self.is_nullable {
            write!(text, r#""type":["{name}","null"]"#)
        } else {
            write!(text, r#""type":"{name}""#)
        };
    }

    fn write_table(&self, text: &mut String, fields: &[Field]) {
        self.write_type(text, "object");
        text.push_str(r#","properties":"#);
        write_all(text, "{}", fields.iter().filter(|it| !it.is_alias), |text, field| {
            write_text(text, field.name);
            text.push_str(":{");
            field.node.write(text);
            text.push('}');
        });
        if fields.iter().any(|field| field.is_required) {
            text.push_str(r#","required":"#);
            let required = fields.iter().filter(|field| field.is_required);
            write_all(text, "[]", required, |text, field| write_text(text, field.name));
        }
        text.push_str(r#","additionalProperties":false"#);
    }

    fn write_choice(&self, text: &mut String, choices: &[(&str, Option<Self>)]) {
        text.push_str(r#""anyOf":"#);
        let null = self.is_nullable.then_some(("", &None));
        let all = choices.iter().map(|(name, node)| (*name, node)).chain(null);
        write_all(text, "[]", all, |text, (name, node)| match node {
            None if name.is_empty() => text.push_str(r#"{"type":"null"}"#),
            None => {
                text.push_str(r#"{"const":"#);
                write_text(text, name);
                text.push('}');
            }
            Some(node) => {
                text.push_str(r#"{"type":"object","properties":{"#);
                write_text(text, name);
                text.push_str(":{");
                node.write(text);
                text.push_str(r#"}},"required":["#);
                write_text(text, name);
                text.push_str(r#"],"additionalProperties":false}"#);
            }
        });
    }
}

fn write_inner(text: &mut String, key: &str, node: &Node) {
    let _ = write!(text, r#","{key}":{{"#);
    node.write(text);
    text.push('}');
}

/// Writes several, with commas between them, in these brackets.
fn write_all<T>(
    text: &mut String,
    brackets: &str,
    all: impl IntoIterator<Item = T>,
    write_one: impl Fn(&mut String, T),
) {
    let (open, close) = brackets.split_at(1);
    text.push_str(open);
    for (index, one) in all.into_iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        write_one(text, one);
    }
    text.push_str(close);
}

/// A name in quotes.
fn write_text(text: &mut String, name: &str) {
    text.push('"');
    for letter in name.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            '\0'..' ' => {
                let _ = write!(text, "\\u{:04x}", u32::from(letter));
            }
            _ => text.push(letter),
        }
    }
    text.push('"');
}

/// How this time's questions are answered.
#[derive(Clone, Copy)]
struct Plan {
    /// Which of an enum's variants it gets.
    turn: usize,
    /// Whether a table gets only what it requires.
    is_minimal: bool,
    depth: usize,
}

/// Answers for one value.
struct Probe<'a> {
    node: &'a mut Node,
    plan: Plan,
}

impl<'a> Probe<'a> {
    fn of(node: &'a mut Node, plan: Plan) -> Self {
        Self { node, plan: Plan { depth: plan.depth + 1, ..plan } }
    }

    fn integer<'de, V: Visitor<'de>>(
        self,
        (min, max): (i64, u64),
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.node.learn(Kind::Integer { min, max });
        visitor.visit_u64(1)
    }

    fn table<'de, V: Visitor<'de>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.plan.depth > DEPTH_MAX {
            return Err(Error::Refused);
        }
        let field_of =
            |&name| Field { name, node: Node::default(), is_required: false, is_alias: false };
        self.node.learn(Kind::Table(names.iter().map(field_of).collect()));
        let Kind::Table(fields) = &mut self.node.kind else { return Err(Error::Refused) };
        let mut offered = 0;
        let entries = Entries { fields, next: 0, offered: &mut offered, plan: self.plan };
        match visitor.visit_map(entries) {
            Err(Error::Missing(name)) => learn(fields, name, |field| &mut field.is_required),
            Err(Error::Duplicate(name)) if fields[offered].name == name => {
                // It has had the same under another name, which comes to light if this one leads.
                fields.swap(0, offered);
                Err(Error::Learned)
            }
            Err(Error::Duplicate(_)) => {
                let name = fields[offered].name;
                learn(fields, name, |field| &mut field.is_alias)
            }
            outcome => outcome,
        }
    }
}

/// Notes something about a field. What is known already is the reason of nothing.
fn learn<T>(
    fields: &mut [Field],
    name: &str,
    property: impl Fn(&mut Field) -> &mut bool,
) -> Result<T, Error> {
    let field = fields.iter_mut().find(|field| field.name == name).ok_or(Error::Refused)?;
    let was_known = std::mem::replace(property(field), true);
    Err(if was_known { Error::Refused } else { Error::Learned })
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.node.learn(Kind::Null);
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.node.learn(Kind::Bool);
        visitor.visit_bool(true)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.integer((i8::MIN.into(), i8::MAX as u64), visitor)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.integer((i16::MIN.into(), i16::MAX as u64), visitor)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.integer((i32::MIN.into(), i32::MAX as u64), visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.integer((i64::MIN, i64::MAX as u64), visitor)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.integer((0, u8::MAX.into()), visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.integer((0, u16::MAX.into()), visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.integer((0, u32::MAX.into()), visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.integer((0, u64::MAX), visitor)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.node.learn(Kind::Fraction);
        visitor.visit_u64(1)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.node.learn(Kind::Text);
        visitor.visit_borrowed_str("a")
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.node.is_nullable = true;
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.plan.depth > DEPTH_MAX {
            return Err(Error::Refused);
        }
        self.node.learn(Kind::List(Box::default()));
        let Kind::List(node) = &mut self.node.kind else { return Err(Error::Refused) };
        visitor.visit_seq(Items {
            nodes: std::slice::from_mut(&mut **node).iter_mut(),
            plan: self.plan,
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.node.learn(Kind::Tuple((0..length).map(|_| Node::default()).collect()));
        let Kind::Tuple(nodes) = &mut self.node.kind else { return Err(Error::Refused) };
        visitor.visit_seq(Items { nodes: nodes.iter_mut(), plan: self.plan })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.plan.depth > DEPTH_MAX {
            return Err(Error::Refused);
        }
        self.node.learn(Kind::Map(Box::default()));
        let Kind::Map(node) = &mut self.node.kind else { return Err(Error::Refused) };
        visitor.visit_map(Pair { node: Some(node), plan: self.plan })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.table(fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.plan.depth > DEPTH_MAX {
            return Err(Error::Refused);
        }
        self.node.learn(Kind::Choice(variants.iter().map(|&name| (name, None)).collect()));
        let Kind::Choice(choices) = &mut self.node.kind else { return Err(Error::Refused) };
        let count = choices.len().max(1);
        let (name, node) = choices.get_mut(self.plan.turn % count).ok_or(Error::Refused)?;
        visitor.visit_enum(Chosen { name, node, plan: self.plan })
    }

    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit_struct identifier ignored_any
    }
}

/// One item for each node.
struct Items<'a> {
    nodes: std::slice::IterMut<'a, Node>,
    plan: Plan,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.nodes.next() else { return Ok(None) };
        seed.deserialize(Probe::of(node, self.plan)).map(Some)
    }
}

/// The keys of a table, one after the other.
struct Entries<'a> {
    fields: &'a mut [Field],
    next: usize,
    /// The index of the key offered last.
    offered: &'a mut usize,
    plan: Plan,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let is_wanted =
            |field: &Field| !field.is_alias && (field.is_required || !self.plan.is_minimal);
        let left = self.fields.iter().skip(self.next);
        let Some(at) = left.into_iter().position(is_wanted) else { return Ok(None) };
        *self.offered = self.next + at;
        self.next = *self.offered + 1;
        let name = self.fields[*self.offered].name;
        seed.deserialize(StrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(Probe::of(&mut self.fields[*self.offered].node, self.plan))
    }
}

/// One entry under a key that means nothing.
struct Pair<'a> {
    node: Option<&'a mut Node>,
    plan: Plan,
}

impl<'de> MapAccess<'de> for Pair<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        if self.node.is_none() {
            return Ok(None);
        }
        seed.deserialize(BorrowedStrDeserializer::new("1")).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let node = self.node.take().ok_or(Error::Refused)?;
        seed.deserialize(Probe::of(node, self.plan))
    }
}

/// The variant whose turn it is.
struct Chosen<'a> {
    name: &'static str,
    node: &'a mut Option<Node>,
    plan: Plan,
}

impl<'a> Chosen<'a> {
    /// The variant holds something.
    fn held(self) -> Probe<'a> {
        Probe::of(self.node.get_or_insert_default(), self.plan)
    }
}

impl<'de> EnumAccess<'de> for Chosen<'_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Error> {
        let variant = seed.deserialize(StrDeserializer::new(self.name))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Chosen<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self.held())
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        self.held().deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.held().table(fields, visitor)
    }
}

/// Why a type was not made.
#[derive(Debug)]
enum Error {
    /// It says that this key is missing.
    Missing(&'static str),
    /// It has had the key offered last, whose first name this is.
    Duplicate(&'static str),
    /// What was missing or double is written down: it can be asked again.
    Learned,
    /// It wants something else.
    Refused,
}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Refused
    }

    fn invalid_type(_: Unexpected<'_>, _: &dyn Expected) -> Self {
        Self::Refused
    }

    fn invalid_value(_: Unexpected<'_>, _: &dyn Expected) -> Self {
        Self::Refused
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::Duplicate(field)
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("it cannot be read")
    }
}

#[cfg(test)]
mod tests;
