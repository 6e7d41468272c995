// SPDX-License-Identifier: Apache-2.0
//! `--format '{{.Name}}'`: the part of Go's templates (`text/template`) that people use with Docker.

mod evaluate;
mod parse;

use serde_json::Value;

use self::evaluate::Scope;

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
            text => Template::of_object(text).map(Self::Template),
        }
    }
}

/// Text with values of an object in it: `{{.A.B}}`, `{{json .A}}`, `{{range .A}}{{.B}} {{end}}`,
/// `{{(index (index .Ports "80/tcp") 0).HostPort}}`, `{{if .A}}a{{else}}b{{end}}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Print(Expression),
    If(Expression, Vec<Node>, Vec<Node>),
    Range { key: Option<String>, value: Option<String>, over: Expression, each: Vec<Node>, none: Vec<Node> },
}

#[derive(Clone, Debug, PartialEq)]
enum Expression {
    /// `.`: the object, or what `range` has come to.
    Dot,
    /// `$`: the object itself.
    Root,
    /// `$name`.
    Variable(String),
    Literal(Value),
    /// `X.Name`.
    Field(Box<Expression>, String),
    Call(Function, Vec<Expression>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Json,
    Len,
    Index,
    Print,
    Println,
    Join,
    Lower,
    Upper,
    Eq,
    Ne,
    Not,
    And,
    Or,
}

impl Template {
    /// For clap: `json` for the whole object, or a template.
    ///
    /// # Errors
    /// What is not known of it.
    pub fn of_object(text: &str) -> Result<Self, String> {
        Self::parse(if text == "json" { "{{json .}}" } else { text })
    }

    /// Reads a template. `\t` and `\n` stand for themselves, as with Docker.
    ///
    /// # Errors
    /// What is not known of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse::nodes(text).map(Self)
    }

    /// The text for an object.
    pub fn render(&self, object: &Value) -> String {
        let mut out = String::new();
        Scope::new(object).render(&self.0, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> String {
        let object = json!({
            "Id": "x1", "Size": 7, "Ok": true, "None": null, "List": ["a", "b"],
            "Config": { "Labels": { "org.name": "v" }, "Env": [] }, "Object": { "b": 1, "a": 2 },
            "Ports": { "80/tcp": [{ "HostPort": "8080" }] }
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
            ("{{.List | json}} {{join .List \", \"}} {{upper .Id}}", "[\"a\",\"b\"] a, b X1"),
            ("{{range .List}}<{{.}}>{{end}}{{range .None}}x{{else}}none{{end}}", "<a><b>none"),
            ("{{range $at, $one := .List}}{{$at}}={{$one}},{{$.Id}} {{end}}", "0=a,x1 1=b,x1 "),
            ("{{range $name, $_ := .Object}}{{$name}}{{end}}", "ab"),
            ("{{range .Config.Env}}x{{end}}{{range .List}}{{println .}}{{end}}", "a\nb\n"),
            ("{{if .Ok}}yes{{end}}{{if .None}}no{{else if .Size}}size{{else}}no{{end}}", "yessize"),
            ("{{if eq .Id \"x1\"}}eq{{end}}{{if and .Ok (not .None)}} both{{end}}", "eq both"),
            ("{{(index (index .Ports \"80/tcp\") 0).HostPort}}", "8080"),
            ("a {{- .Id -}}  b", "ax1b"),
        ] {
            assert_eq!(render(template), text, "{template}");
        }
        assert!(render("{{json .}}").starts_with("{\"Config\":"));
    }

    #[test]
    fn what_is_not_known_is_named() {
        for template in [
            "{{",
            "{{.Id",
            "{{Id}}",
            "{{range .List}}",
            "{{.A..B}}",
            "{{index .A}}",
            "{{index .A b}}",
            "{{json}}",
            "{{end}}",
            "{{else}}",
            "{{if .A}}{{else}}{{else}}{{end}}",
            "{{(.A}}",
            "{{.A)}}",
            "{{\"}}",
            "{{range $a := }}{{end}}",
            "{{.A .B}}",
        ] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
        assert!(Template::parse(&format!("{{{{{}.A}}}}", "(".repeat(10_000))).is_err(), "too deep");
        assert!(Template::parse(&"{{if .A}}".repeat(10_000)).is_err(), "too deep");
    }

    proptest! {
        #[test]
        fn any_words_are_survived(words in "(\\{\\{(if|range|end|else|json|index|\\.A|\\$x|:=|,|\\(|\\)| |\"a\"|1)*\\}\\}){0,4}") {
            if let Ok(template) = Template::parse(&words) {
                template.render(&json!({ "A": [1, { "A": 2 }] }));
            }
        }

        #[test]
        fn any_template_is_survived(text in "\\PC*") {
            if let Ok(template) = Template::parse(&text) {
                template.render(&json!({}));
            }
        }
    }
}
