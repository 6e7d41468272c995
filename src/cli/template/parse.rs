// SPDX-License-Identifier: Apache-2.0
//! From the text of a template to what it says.

use serde_json::Value;

use super::{Expression, Function, Node};

/// How deep `if`, `range` and parentheses may lie in each other.
const DEEPEST: usize = 32;

const NAMES: [(&str, Function, usize); 13] = [
    ("json", Function::Json, 1),
    ("len", Function::Len, 1),
    ("index", Function::Index, 2),
    ("print", Function::Print, 1),
    ("println", Function::Println, 1),
    ("join", Function::Join, 2),
    ("lower", Function::Lower, 1),
    ("upper", Function::Upper, 1),
    ("eq", Function::Eq, 2),
    ("ne", Function::Ne, 2),
    ("not", Function::Not, 1),
    ("and", Function::And, 1),
    ("or", Function::Or, 1),
];

/// A part of the text.
enum Part {
    Text(String),
    /// What is between `{{` and `}}`.
    Action(String),
}

/// Reads all of a template.
pub fn nodes(text: &str) -> Result<Vec<Node>, String> {
    let mut parts = split(text)?.into_iter();
    match block(&mut parts, 0)? {
        (nodes, Ending::OfText) => Ok(nodes),
        (_, end) => Err(format!("`{}` without `if` or `range` before it", end.word())),
    }
}

fn split(text: &str) -> Result<Vec<Part>, String> {
    let (mut parts, mut rest, mut trimmed) = (Vec::new(), text, false);
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or("`{{` without `}}` after it")?;
        let before = if trimmed { before.trim_start() } else { before };
        let inner = action.strip_prefix("- ");
        parts.push(Part::Text(unescape(if inner.is_some() { before.trim_end() } else { before })));
        let action = inner.unwrap_or(action);
        let inner = action.strip_suffix(" -");
        trimmed = inner.is_some();
        parts.push(Part::Action(inner.unwrap_or(action).to_owned()));
        rest = after;
    }
    parts.push(Part::Text(unescape(if trimmed { rest.trim_start() } else { rest })));
    Ok(parts)
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// What ends a block.
enum Ending {
    OfText,
    End,
    /// With the action that follows: `else if .A`.
    Else(Option<Vec<Token>>),
}

impl Ending {
    fn word(&self) -> &'static str {
        match self {
            Self::OfText => "the end",
            Self::End => "end",
            Self::Else(_) => "else",
        }
    }
}

fn block(parts: &mut impl Iterator<Item = Part>, depth: usize) -> Result<(Vec<Node>, Ending), String> {
    if depth > DEEPEST {
        return Err("too many blocks in each other".to_owned());
    }
    let mut nodes = Vec::new();
    while let Some(part) = parts.next() {
        let action = match part {
            Part::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Part::Action(action) => action,
        };
        let tokens = tokens(&action)?;
        match tokens.first().map(|token| token.text.as_str()) {
            Some("end") if tokens.len() == 1 => return Ok((nodes, Ending::End)),
            Some("else") => {
                let rest: Vec<Token> = tokens.into_iter().skip(1).collect();
                return Ok((nodes, Ending::Else((!rest.is_empty()).then_some(rest))));
            }
            Some("if") => nodes.push(condition(tokens.into_iter().skip(1).collect(), parts, depth + 1)?),
            Some("range") => nodes.push(range(tokens.into_iter().skip(1).collect(), parts, depth + 1)?),
            _ => nodes.push(Node::Print(Reader::all(tokens)?)),
        }
    }
    Ok((nodes, Ending::OfText))
}

fn condition(words: Vec<Token>, parts: &mut impl Iterator<Item = Part>, depth: usize) -> Result<Node, String> {
    let (asked, (then, end)) = (Reader::all(words)?, block(parts, depth)?);
    let otherwise = match end {
        Ending::OfText => return Err("`if` without `end`".to_owned()),
        Ending::End => Vec::new(),
        Ending::Else(None) => last_block(parts, depth)?,
        Ending::Else(Some(mut words)) if words.first().is_some_and(|word| word.text == "if") => {
            words.remove(0);
            if depth > DEEPEST {
                return Err("too many blocks in each other".to_owned());
            }
            vec![condition(words, parts, depth + 1)?]
        }
        Ending::Else(Some(_)) => return Err("after `else` comes `if`, or nothing".to_owned()),
    };
    Ok(Node::If(asked, then, otherwise))
}

fn range(mut words: Vec<Token>, parts: &mut impl Iterator<Item = Part>, depth: usize) -> Result<Node, String> {
    let (mut key, mut value) = (None, None);
    if let Some(at) = words.iter().position(|word| word.text == ":=" && !word.quoted) {
        let over = words.split_off(at + 1);
        let name = |word: &Token| word.text.strip_prefix('$').filter(|name| is_name(name)).map(str::to_owned);
        match words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>()[..] {
            [_, ":="] => value = words.first().and_then(name),
            [_, ",", _, ":="] => (key, value) = (words.first().and_then(name), words.get(2).and_then(name)),
            _ => {}
        }
        if value.is_none() {
            return Err("before `:=` come one or two variables: `$name, $value`".to_owned());
        }
        words = over;
    }
    let (over, (each, end)) = (Reader::all(words)?, block(parts, depth)?);
    let none = match end {
        Ending::OfText => return Err("`range` without `end`".to_owned()),
        Ending::End => Vec::new(),
        Ending::Else(None) => last_block(parts, depth)?,
        Ending::Else(Some(_)) => return Err("after the `else` of `range` comes nothing".to_owned()),
    };
    Ok(Node::Range { key, value, over, each, none })
}

fn last_block(parts: &mut impl Iterator<Item = Part>, depth: usize) -> Result<Vec<Node>, String> {
    match block(parts, depth)? {
        (nodes, Ending::End) => Ok(nodes),
        (_, end) => Err(format!("`else`, then `{}`, where `end` is to be", end.word())),
    }
}

#[derive(Debug)]
struct Token {
    text: String,
    /// It was in quotes.
    quoted: bool,
    /// Nothing is between it and the one before.
    glued: bool,
}

fn tokens(action: &str) -> Result<Vec<Token>, String> {
    let (mut tokens, mut rest, mut glued) = (Vec::new(), action, false);
    loop {
        let trimmed = rest.trim_start();
        glued = glued && trimmed.len() == rest.len();
        rest = trimmed;
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        let (token, after) = match first {
            '"' | '`' => quoted(rest, first)?,
            '(' | ')' | ',' | '|' => rest.split_at(1),
            _ if rest.starts_with(":=") => rest.split_at(2),
            ':' => return Err("`:` without `=`".to_owned()),
            _ => {
                let ends = |c: char| c.is_whitespace() || "()|,:\"`".contains(c);
                rest.split_at(rest.find(ends).unwrap_or(rest.len()))
            }
        };
        let is_quoted = ['"', '`'].contains(&first);
        tokens.push(Token { text: token.to_owned(), quoted: is_quoted, glued });
        (rest, glued) = (after, true);
    }
}

/// The text in quotes, without them, and what comes after; a text in `"` has no quotes of its own.
fn quoted(text: &str, quote: char) -> Result<(&str, &str), String> {
    let inside = text.get(1..).unwrap_or_default();
    inside.split_once(quote).ok_or_else(|| format!("`{quote}` without another after it"))
}

/// Reads an expression from its words.
struct Reader<I: Iterator<Item = Token>> {
    tokens: std::iter::Peekable<I>,
    depth: usize,
}

impl Reader<std::vec::IntoIter<Token>> {
    fn all(tokens: Vec<Token>) -> Result<Expression, String> {
        let mut reader = Self { tokens: tokens.into_iter().peekable(), depth: 0 };
        let expression = reader.pipeline()?;
        match reader.tokens.next() {
            None => Ok(expression),
            Some(token) => Err(format!("`{}` is one word too many", token.text)),
        }
    }

    /// `.A | json`: what comes before is the last argument of what comes after.
    fn pipeline(&mut self) -> Result<Expression, String> {
        let mut value = self.call(None)?;
        while self.tokens.next_if(|token| token.text == "|" && !token.quoted).is_some() {
            value = self.call(Some(value))?;
        }
        Ok(value)
    }

    fn call(&mut self, last: Option<Expression>) -> Result<Expression, String> {
        let name = self.tokens.peek().map(|token| if token.quoted { "" } else { token.text.as_str() });
        let Some((name, function, least)) = NAMES.iter().find(|(known, ..)| Some(*known) == name) else {
            return match last {
                None => self.operand(),
                Some(_) => Err("after `|` comes a function: `json`, `len`, `join`".to_owned()),
            };
        };
        self.tokens.next();
        let mut arguments = Vec::new();
        while self.tokens.peek().is_some_and(|token| token.quoted || ![")", "|"].contains(&token.text.as_str())) {
            arguments.push(self.operand()?);
        }
        arguments.extend(last);
        match arguments.len() < *least {
            true => Err(format!("`{name}` wants {least} value(s) after it")),
            false => Ok(Expression::Call(*function, arguments)),
        }
    }

    fn operand(&mut self) -> Result<Expression, String> {
        let token = self.tokens.next().ok_or("a value is missing")?;
        if token.quoted {
            return Ok(Expression::Literal(Value::String(token.text)));
        }
        if token.text == "(" {
            self.depth += 1;
            if self.depth > DEEPEST {
                return Err("too many parentheses".to_owned());
            }
            let inner = self.pipeline()?;
            self.tokens.next_if(|token| token.text == ")" && !token.quoted).ok_or("`(` without `)`")?;
            self.depth -= 1;
            let field = self.tokens.next_if(|token| token.glued && token.text.starts_with('.'));
            return field.map_or(Ok(inner.clone()), |field| fields(inner, &field.text));
        }
        if let Some(variable) = token.text.strip_prefix('$') {
            let (name, path) = variable.split_at(variable.find('.').unwrap_or(variable.len()));
            let base = if name.is_empty() { Expression::Root } else { Expression::Variable(name.to_owned()) };
            return if path.is_empty() { Ok(base) } else { fields(base, path) };
        }
        if token.text.starts_with('.') {
            return if token.text == "." { Ok(Expression::Dot) } else { fields(Expression::Dot, &token.text) };
        }
        match serde_json::from_str(&token.text) {
            Ok(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Expression::Literal(value)),
            _ => Err(format!(
                "`{}` is not known: there are `.Field`, `if`, `range`, `json`, `len`, `index`, `join`, `println`",
                token.text
            )),
        }
    }
}

fn fields(base: Expression, path: &str) -> Result<Expression, String> {
    let names: Vec<&str> = path.split('.').skip(1).collect();
    match names.len() <= DEEPEST && names.iter().all(|name| is_name(name)) {
        true => Ok(names.iter().fold(base, |base, name| Expression::Field(Box::new(base), (*name).to_owned()))),
        false => Err(format!("`{path}` is no field")),
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}
