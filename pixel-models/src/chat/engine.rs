//! Jinja as Hugging Face's code sets it up for templates of conversations.

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Steps after which a template is given up: a hundred times what a long conversation takes of any published one.
const STEPS: u64 = 50_000_000;

/// What a tag begins with.
const OPEN: &str = "{%";
/// What a tag ends with.
const CLOSE: &str = "%}";

/// The environment: `trim_blocks`, `lstrip_blocks`, Python's methods, `raise_exception`, `strftime_now`; no file can be
/// included.
pub(super) fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    // The syntax is Jinja's own, which cannot contradict itself.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_fuel(Some(STEPS));
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        let invalid = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}"));
        jiff::fmt::strtime::format(&format, &jiff::ZonedDateTime::now()).map_err(invalid)
    });
    environment
}

/// The template without the tags by which Hugging Face's code finds what the assistant said: `{% generation %}` and
/// `{% endgeneration %}`, which print nothing.
pub(super) fn without_generation_tags(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(start) = rest.find(OPEN) {
        let (before, tag) = rest.split_at(start);
        let inner = tag[OPEN.len()..].split_once(CLOSE).map_or("", |(inner, _)| inner);
        let instead = match inner.trim_matches(['-', '+']).trim() {
            name @ "generation" => inner.replace(name, "if true"),
            name @ "endgeneration" => inner.replace(name, "endif"),
            // Its end may belong to another tag, if this is no tag but a text.
            _ => {
                out.extend([before, OPEN]);
                rest = &tag[OPEN.len()..];
                continue;
            }
        };
        out.extend([before, OPEN, instead.as_str(), CLOSE]);
        rest = &tag[OPEN.len() + inner.len() + CLOSE.len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    fn render(source: &str) -> Result<String, String> {
        let text = environment().render_str(source, context! { name => "a  ", list => vec![1, 2, 3] });
        text.map_err(|error| error.detail().unwrap_or_default().to_owned())
    }

    #[test]
    fn a_template_is_filled_in_as_by_hugging_face() {
        // A line of a block alone leaves nothing; the last line break goes.
        assert_eq!(render("{% if true %}\n  {% set x = 1 %}\nx={{ x }}\n{% endif %}\n"), Ok("x=1\n".into()));
        assert_eq!(render("{{ name.strip() + '<b>' }}{{ list[1:] | length }}"), Ok("a<b>2".into()));
        assert_eq!(
            render("{% for i in list %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"),
            Ok("1".into())
        );
        assert_eq!(render("{{ raise_exception('No ' + name) }}"), Err("No a  ".into()));
        let year = render("{{ strftime_now('%Y') }}").unwrap();
        assert!(year.len() == 4 && year.as_str() >= "2024", "{year}");
        assert!(render("{{ strftime_now('%!') }}").unwrap_err().starts_with("strftime_now: "));
        assert!(render("{% for i in range(9999) %}{% for j in range(9999) %}{{ j }}{% endfor %}{% endfor %}").is_err());
    }

    #[test]
    fn tags_of_generations_print_nothing() {
        let source =
            "{%- generation -%} {{ '{% generation' }} a {%endgeneration%}{% set generation = 1 %}{{ generation }}";
        assert_eq!(render(&without_generation_tags(source)), Ok("{% generation a 1".into()));
        assert_eq!(without_generation_tags("{% for"), "{% for");
    }
}
