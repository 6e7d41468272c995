// SPDX-License-Identifier: Apache-2.0
//! `--format '{{.Name}}'`: the part of Go's templates that people use with Docker.

use std::fmt::Write;

use serde_json::Value;

/// How the lines of a list are printed.
#[derive(Clone, Debug)]
pub enum Lines {
    /// In columns.
    Table,
    /// By a template.
    Template(Template),
}

impl Lines {
    /// For clap: `table`, `json`, or a template.
    ///
    /// # Errors
    /// What is not known of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Template::parse("{{json .}}").map(Self::Template),
            text => Template::parse(text).map(Self::Template),
        }
    }
}

/// Text with values of an object in it: `{{.A.B}}`, `{{json .A}}`, `{{len .A}}`, `{{index .A "key"}}`, `{{index .A 0}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Print(Path),
    Json(Path),
    Len(Path),
    Index(Path, Key),
}

/// Names of fields, outermost first; none for the object itself.
type Path = Vec<String>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Name(String),
    Number(usize),
}

impl Template {
    /// Reads a template. `\t` and `\n` stand for themselves, as with Docker.
    ///
    /// # Errors
    /// What is not known of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            pieces.push(Piece::Text(unescape(before)));
            let (action, after) = after.split_once("}}").ok_or("`{{` without `}}` after it")?;
            pieces.push(Piece::parse(action.trim())?);
            rest = after;
        }
        pieces.push(Piece::Text(unescape(rest)));
        Ok(Self(pieces))
    }

    /// The text for an object.
    pub fn render(&self, object: &Value) -> String {
        let mut out = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out += text,
                Piece::Print(path) => print(&mut out, find(object, path)),
                Piece::Json(path) => out += &find(object, path).map_or_else(|| "null".to_owned(), Value::to_string),
                Piece::Len(path) => out += &find(object, path).map_or(0, len).to_string(),
                Piece::Index(path, key) => {
                    let value = find(object, path).and_then(|value| match key {
                        Key::Name(name) => value.get(name),
                        Key::Number(number) => value.get(number),
                    });
                    print(&mut out, value);
                }
            }
        }
        out
    }
}

impl Piece {
    fn parse(action: &str) -> Result<Self, String> {
        let (word, argument) = action.split_once(' ').map_or((action, ""), |(word, rest)| (word, rest.trim()));
        match word {
            "json" => path(argument).map(Self::Json),
            "len" => path(argument).map(Self::Len),
            "index" => {
                let (object, key) = argument.split_once(' ').ok_or("`index` wants a value and a key")?;
                let key = key.trim();
                let name = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
                let number = || key.parse().map_err(|_| format!("`{key}` is neither a number nor a text in quotes"));
                let key = name.map_or_else(|| number().map(Key::Number), |name| Ok(Key::Name(name.to_owned())))?;
                Ok(Self::Index(path(object)?, key))
            }
            _ if argument.is_empty() => path(word).map(Self::Print),
            _ => Err(format!("`{word}` is not known: there are `.Field`, `json`, `len` and `index`")),
        }
    }
}

fn path(text: &str) -> Result<Path, String> {
    let names = text.strip_prefix('.').ok_or_else(|| format!("`{text}` is no field: they begin with a dot"))?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    match names.split('.').all(is_name) {
        true => Ok(names.split('.').map(str::to_owned).collect()),
        false => Err(format!("`{text}` is no field")),
    }
}

fn find<'a>(object: &'a Value, path: &Path) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, name| value.get(name))
}

fn len(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.len(),
        Value::Object(values) => values.len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// As Go prints a value.
fn print(out: &mut String, value: Option<&Value>) {
    match value {
        None => *out += "<no value>",
        Some(Value::Null) => *out += "<nil>",
        Some(Value::String(text)) => *out += text,
        Some(Value::Array(values)) => {
            out.push('[');
            for (at, value) in values.iter().enumerate() {
                *out += if at > 0 { " " } else { "" };
                print(out, Some(value));
            }
            out.push(']');
        }
        Some(Value::Object(values)) => {
            *out += "map[";
            for (at, (key, value)) in values.iter().enumerate() {
                // Writing to a string does not fail.
                let _ = write!(out, "{}{key}:", if at > 0 { " " } else { "" });
                print(out, Some(value));
            }
            out.push(']');
        }
        Some(value) => *out += &value.to_string(),
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> String {
        let object = json!({
            "Id": "x1", "Size": 7, "Ok": true, "None": null, "List": ["a", "b"],
            "Config": { "Labels": { "org.name": "v" }, "Env": [] }, "Object": { "b": 1, "a": 2 }
        });
        Template::parse(template).unwrap().render(&object)
    }

    #[test]
    fn values_are_printed_as_go_does() {
        for (template, text) in [
            ("plain", "plain"),
            ("{{.Id}}", "x1"),
            ("{{ .Id }}\\t{{.Size}} {{.Ok}}", "x1\t7 true"),
            ("{{.List}} {{.Object}}", "[a b] map[a:2 b:1]"),
            ("{{.None}} {{.Missing}} {{.Id.Deeper}}", "<nil> <no value> <no value>"),
            ("{{json .Object}} {{json .List}}", "{\"a\":2,\"b\":1} [\"a\",\"b\"]"),
            ("{{len .List}} {{len .Id}}", "2 2"),
            ("{{index .Config.Labels \"org.name\"}} {{index .List 1}} {{index .List 5}}", "v b <no value>"),
        ] {
            assert_eq!(render(template), text, "{template}");
        }
        assert!(render("{{json .}}").starts_with("{\"Config\":"));
    }

    #[test]
    fn what_is_not_known_is_named() {
        for template in
            ["{{", "{{.Id", "{{Id}}", "{{range .List}}", "{{.A..B}}", "{{index .A}}", "{{index .A b}}", "{{json}}"]
        {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }

    proptest! {
        #[test]
        fn any_template_is_survived(text in "\\PC*") {
            if let Ok(template) = Template::parse(&text) {
                template.render(&json!({}));
            }
        }
    }
}
