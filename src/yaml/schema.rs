//! What a YAML file may hold. The JSON Schema derived from the Rust type is the one description: editors get it
//! as a file, and the loader checks values against it, because serde alone cannot say where in a file, and
//! under which nearest name, a mistake lies.

use schemars::JsonSchema;
use serde_json::Value as Json;
use serde_yaml::Value as Yaml;

use crate::{Error, Result};

/// The description of one kind of file.
#[derive(Debug)]
pub struct Schema {
    root: Json,
    /// What to do about a key that is missing, given its path.
    missing: fn(&str) -> String,
}

impl Schema {
    /// The schema of `T`; `missing` says what to do about a key that is not there, given its path.
    pub fn of<T: JsonSchema>(missing: fn(&str) -> String) -> Self {
        Self {
            root: schemars::schema_for!(T).to_value(),
            missing,
        }
    }

    /// The schema itself.
    pub fn json(&self) -> &Json {
        &self.root
    }

    /// The whole file.
    pub fn root(&self) -> Node<'_> {
        self.node(&self.root)
    }

    /// Checks a whole file; the error's place is the path of the key.
    ///
    /// # Errors
    /// The first unknown key, missing key, wrong type or unknown name.
    pub fn check(&self, value: &Yaml) -> Result<()> {
        self.root().check(value, "")
    }

    /// Checks the value of one top-level key.
    ///
    /// # Errors
    /// As [`Schema::check`].
    pub fn check_key(&self, key: &str, value: &Yaml) -> Result<()> {
        match self.root().property(key) {
            Some(node) => node.check(value, key),
            None => Ok(()),
        }
    }

    fn node<'a>(&'a self, here: &'a Json) -> Node<'a> {
        Node { schema: self, here }
    }
}

/// A place in a schema.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    schema: &'a Schema,
    here: &'a Json,
}

impl<'a> Node<'a> {
    fn at(self, here: &'a Json) -> Self {
        Self { here, ..self }
    }

    /// The same place with a reference to a definition followed, and without "or null".
    fn resolved(self) -> Self {
        if let Some(name) = self.here["$ref"]
            .as_str()
            .and_then(|path| path.strip_prefix("#/$defs/"))
        {
            return self.at(&self.schema.root["$defs"][name]).resolved();
        }
        let alternatives = self.here["anyOf"].as_array().map_or(&[][..], Vec::as_slice);
        match alternatives.iter().find(|node| node["type"] != "null") {
            Some(node) => self.at(node).resolved(),
            None => self,
        }
    }

    fn allows_null(self) -> bool {
        let alternatives = self.here["anyOf"].as_array().map_or(&[][..], Vec::as_slice);
        let types = self.here["type"].as_array().map_or(&[][..], Vec::as_slice);
        alternatives.iter().any(|node| node["type"] == "null") || types.iter().any(|name| name == "null")
    }

    /// The place below `key`, for plain sections.
    pub fn property(self, key: &str) -> Option<Self> {
        self.resolved().here["properties"]
            .get(key)
            .map(|node| self.at(node))
    }

    /// The variants of a section whose keys depend on one of them, such as `kind`: the name that this key has in
    /// each; none for other places.
    fn variants(self) -> impl Iterator<Item = (&'a str, Self)> + use<'a> {
        let variants = self.resolved().here["oneOf"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let named = move |variant: &'a Json| {
            let (_, name) = tag_of(variant)?;
            Some((name, self.at(variant)))
        };
        variants.iter().filter_map(named)
    }

    /// The key that tells the variants apart.
    fn tag(self) -> &'a str {
        let tag = self.variants().find_map(|(_, variant)| tag_of(variant.here));
        tag.map_or("kind", |(key, _)| key)
    }

    /// Whether the keys here depend on one of them.
    pub fn is_union(self) -> bool {
        self.variants().next().is_some()
    }

    /// Names of an enumeration; empty for other places.
    fn names(self) -> Vec<&'a str> {
        let node = self.resolved().here;
        let members = node["oneOf"]
            .as_array()
            .map_or(std::slice::from_ref(node), Vec::as_slice);
        let names = members.iter().flat_map(|member| {
            let several = member["enum"].as_array().map_or(&[][..], Vec::as_slice);
            member.get("const").into_iter().chain(several)
        });
        names.filter_map(Json::as_str).collect()
    }

    fn keys(self) -> Vec<&'a str> {
        let properties = self.here["properties"].as_object();
        properties.map_or_else(Vec::new, |map| map.keys().map(String::as_str).collect())
    }

    fn check(self, value: &Yaml, path: &str) -> Result<()> {
        let node = self.resolved();
        if value.is_null() && self.allows_null() {
            return Ok(());
        }
        if node.is_union() {
            return node.variant_for(value, path)?.check_mapping(value, path);
        }
        let names = node.names();
        if !names.is_empty() {
            return check_name(value, &names, path);
        }
        let types = &node.here["type"];
        let is = |name: &str| {
            types == name
                || types
                    .as_array()
                    .is_some_and(|list| list.iter().any(|t| t == name))
        };
        match () {
            () if is("object") => node.check_mapping(value, path),
            () if is("array") => node.check_list(value, path),
            () if is("number") => expect(value.is_number(), value, "a number", path),
            () if is("integer") => {
                let negative_allowed = node.here["minimum"] != 0;
                let fits = value.is_u64() || value.is_i64() && negative_allowed;
                let kind = if negative_allowed {
                    "a whole number"
                } else {
                    "a whole number, 0 or more"
                };
                expect(fits, value, kind, path)
            }
            () if is("boolean") => expect(value.is_bool(), value, "true or false", path),
            () if is("string") => expect(value.is_string(), value, "text", path),
            () => Ok(()),
        }
    }

    fn variant_for(self, value: &Yaml, path: &str) -> Result<Self> {
        let kinds: Vec<&str> = self.variants().map(|(kind, _)| kind).collect();
        let tag = self.tag();
        let kind_path = format!("{path}.{tag}");
        expect(
            value.is_mapping(),
            value,
            &format!("a mapping with a {tag}"),
            path,
        )?;
        let Some(kind) = value.get(tag) else {
            let remedy = format!("Give one of {}.", kinds.join(", "));
            return Err(Error::bad(kind_path, "is not set", remedy));
        };
        check_name(kind, &kinds, &kind_path)?;
        let variant = self.variants().find(|(name, _)| kind == *name);
        Ok(variant.expect("the name was found among the kinds").1)
    }

    fn check_mapping(self, value: &Yaml, path: &str) -> Result<()> {
        let Some(mapping) = value.as_mapping() else {
            return expect(false, value, "a mapping", path);
        };
        for (key, value) in mapping {
            let Some(key) = key.as_str() else {
                return Err(Error::bad(
                    if path.is_empty() { "the file" } else { path },
                    format!("holds the key {}, which is not text", shown(key)),
                    "Give a name as key.",
                ));
            };
            // Where any key may stand, as in a map, one description holds for all values.
            let any_key = Some(&self.here["additionalProperties"]).filter(|node| node.is_object());
            match self.here["properties"].get(key).or(any_key) {
                Some(node) => self.at(node).check(value, &join(path, key))?,
                None => return Err(self.unknown_key(key, &join(path, key))),
            }
        }
        let required = self.here["required"].as_array().map_or(&[][..], Vec::as_slice);
        match required
            .iter()
            .filter_map(Json::as_str)
            .find(|key| value.get(*key).is_none())
        {
            None => Ok(()),
            Some(key) => Err(Error::bad(
                join(path, key),
                "is not set and has no default",
                (self.schema.missing)(&join(path, key)),
            )),
        }
    }

    fn unknown_key(self, key: &str, path: &str) -> Error {
        let known = self.keys();
        let elsewhere = places_of(self.schema.root(), key);
        let remedy = match nearest(key, &known) {
            Some(near) => format!("Did you mean {near}? Known here are {}.", known.join(", ")),
            None if !elsewhere.is_empty() => format!("There is {}.", elsewhere.join(" and ")),
            None if known.is_empty() => "No keys are known here.".to_owned(),
            None => format!("Known here are {}.", known.join(", ")),
        };
        Error::bad(path, "is not a known key", remedy)
    }

    fn check_list(self, value: &Yaml, path: &str) -> Result<()> {
        let Some(list) = value.as_sequence() else {
            return expect(false, value, "a list", path);
        };
        if let Some(length) = self.here["minItems"]
            .as_u64()
            .filter(|n| self.here["maxItems"].as_u64() == Some(*n))
        {
            let what = format!("a list of {length} entries");
            expect(list.len() as u64 == length, value, &what, path)?;
        }
        let items = self.at(&self.here["items"]);
        list.iter()
            .enumerate()
            .try_for_each(|(index, item)| items.check(item, &format!("{path}[{index}]")))
    }
}

fn expect(fits: bool, value: &Yaml, kind: &str, path: &str) -> Result<()> {
    match fits {
        true => Ok(()),
        false => Err(Error::bad(
            path,
            format!("is {}, which is not {kind}", shown(value)),
            format!("Give {kind}."),
        )),
    }
}

fn check_name(value: &Yaml, names: &[&str], path: &str) -> Result<()> {
    if value.as_str().is_some_and(|name| names.contains(&name)) {
        return Ok(());
    }
    let guess = value.as_str().and_then(|name| nearest(name, names));
    let guess = guess.map_or(String::new(), |name| format!("Did you mean {name}? "));
    Err(Error::bad(
        path,
        format!("is {}, which is not a known name", shown(value)),
        format!("{guess}Known are {}.", names.join(", ")),
    ))
}

/// Paths of all keys called `key` below `root`, whatever their section.
fn places_of(root: Node<'_>, key: &str) -> Vec<String> {
    let mut places = Vec::new();
    collect_places(root, "", key, &mut places);
    places
}

/// The key whose value names this variant of a union, and that name.
fn tag_of(variant: &Json) -> Option<(&str, &str)> {
    let mut properties = variant["properties"].as_object()?.iter();
    properties.find_map(|(key, node)| Some((key.as_str(), node["const"].as_str()?)))
}

fn collect_places(node: Node<'_>, path: &str, key: &str, out: &mut Vec<String>) {
    for name in node.keys() {
        let below = join(path, name);
        if name == key {
            out.push(below.clone());
        }
        let Some(child) = node.property(name).map(Node::resolved) else {
            continue;
        };
        let having = child
            .variants()
            .filter(|(_, variant)| variant.keys().contains(&key));
        let kinds: Vec<&str> = having.map(|(kind, _)| kind).collect();
        if !kinds.is_empty() {
            out.push(format!("{below}.{key} with {} {}", child.tag(), kinds.join(", ")));
        }
        collect_places(child, &below, key, out);
    }
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

/// The known name that `name` was most likely meant to be: one with few letters changed, or one it begins.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&lower, candidate);
    let near = known
        .iter()
        .copied()
        .min_by_key(|candidate| distance(candidate))?;
    if distance(near) <= 1 + near.len().max(name.len()) / 4 {
        return Some(near);
    }
    known
        .iter()
        .copied()
        .find(|candidate| lower.len() >= 3 && candidate.starts_with(&lower))
}

/// A value as the user may have written it, shortened.
fn shown(value: &Yaml) -> String {
    let text = match value {
        Yaml::Null => "null".to_owned(),
        Yaml::Mapping(_) => "a mapping".to_owned(),
        Yaml::String(text) => format!("\"{text}\""),
        other => serde_json::to_string(other).unwrap_or_else(|_| "a value".to_owned()),
    };
    match text.char_indices().nth(60) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
