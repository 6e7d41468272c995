// SPDX-License-Identifier: Apache-2.0
//! What a template says of an object.

use std::fmt::Write;

use serde_json::Value;

use super::{Expression, Function, Node};

/// What names stand for.
pub struct Scope<'a> {
    root: &'a Value,
    dot: Value,
    variables: Vec<(&'a str, Value)>,
}

impl<'a> Scope<'a> {
    /// The object is `.` and `$`.
    pub fn new(root: &'a Value) -> Self {
        Self { root, dot: root.clone(), variables: Vec::new() }
    }

    /// Adds what they say.
    pub fn render(&mut self, nodes: &'a [Node], out: &mut String) {
        for node in nodes {
            match node {
                Node::Text(text) => *out += text,
                Node::Print(expression) => print(out, self.value(expression).as_ref()),
                Node::If(asked, then, otherwise) => {
                    let chosen = if self.value(asked).is_some_and(|value| holds(&value)) { then } else { otherwise };
                    self.render(chosen, out);
                }
                Node::Range { key, value, over, each, none } => {
                    let entries = self.value(over).map(entries).unwrap_or_default();
                    if entries.is_empty() {
                        self.render(none, out);
                    }
                    for (name, entry) in entries {
                        let known = self.variables.len();
                        self.variables.extend(key.iter().map(|key| (key.as_str(), name.clone())));
                        self.variables.extend(value.iter().map(|value| (value.as_str(), entry.clone())));
                        let outer = std::mem::replace(&mut self.dot, entry);
                        self.render(each, out);
                        self.dot = outer;
                        self.variables.truncate(known);
                    }
                }
            }
        }
    }

    /// `None` where there is no such field.
    fn value(&self, expression: &Expression) -> Option<Value> {
        match expression {
            Expression::Dot => Some(self.dot.clone()),
            Expression::Root => Some(self.root.clone()),
            Expression::Variable(name) => {
                self.variables.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone())
            }
            Expression::Literal(value) => Some(value.clone()),
            Expression::Field(of, name) => self.value(of)?.get(name).cloned(),
            Expression::Call(function, arguments) => {
                call(*function, arguments.iter().map(|argument| self.value(argument)).collect())
            }
        }
    }
}

fn call(function: Function, arguments: Vec<Option<Value>>) -> Option<Value> {
    let first = arguments.first().cloned().flatten();
    let text = |value: &Option<Value>| {
        let mut text = String::new();
        print(&mut text, value.as_ref());
        text
    };
    let words = || arguments.iter().map(text).collect::<Vec<_>>().join(" ");
    let truth = |value: &Option<Value>| value.as_ref().is_some_and(holds);
    let equal = || arguments.iter().skip(1).any(|other| *other == first);
    Some(match function {
        Function::Json => Value::String(first.map_or_else(|| "null".to_owned(), |value| value.to_string())),
        Function::Len => first.as_ref().map_or(0, len).into(),
        Function::Index => {
            return arguments.into_iter().skip(1).try_fold(first?, |value, key| match key? {
                Value::Number(at) => value.get(usize::try_from(at.as_u64()?).ok()?).cloned(),
                Value::String(name) => value.get(name).cloned(),
                _ => None,
            });
        }
        Function::Print => Value::String(words()),
        Function::Println => Value::String(words() + "\n"),
        Function::Join => {
            let parts: Vec<String> =
                first.map(entries).unwrap_or_default().into_iter().map(|(_, value)| text(&Some(value))).collect();
            Value::String(parts.join(&arguments.get(1).map(text).unwrap_or_default()))
        }
        Function::Lower => Value::String(words().to_lowercase()),
        Function::Upper => Value::String(words().to_uppercase()),
        Function::Eq => equal().into(),
        Function::Ne => (!equal()).into(),
        Function::Not => (!truth(&first)).into(),
        Function::And => return arguments.iter().find(|one| !truth(one)).or(arguments.last()).cloned().flatten(),
        Function::Or => return arguments.iter().find(|one| truth(one)).or(arguments.last()).cloned().flatten(),
    })
}

/// Names or numbers, and what they are of.
fn entries(value: Value) -> Vec<(Value, Value)> {
    match value {
        Value::Array(values) => values.into_iter().enumerate().map(|(at, value)| (at.into(), value)).collect(),
        Value::Object(values) => values.into_iter().map(|(name, value)| (name.into(), value)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// What `if` holds for true.
fn holds(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(_) | Value::Array(_) | Value::Object(_) => len(value) > 0,
    }
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
