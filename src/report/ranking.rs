//! Which prompts improved, worsened or changed the most against the baseline.

use super::evaluation::{Evaluation, Model, PromptIndex};
use super::html::{Cell, Section, fold, table};
use crate::plot::{escape, fixed};

/// Prompts in each list.
const LISTED: usize = 6;

/// A prompt's mean score under the baseline and under another model.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub prompt: PromptIndex,
    pub before: f64,
    pub after: f64,
}

impl Change {
    pub fn by(&self) -> f64 {
        self.after - self.before
    }
}

/// Every prompt that both models have scores of, the most improved first.
pub fn changes(baseline: &Model, model: &Model, reward: &str) -> Vec<Change> {
    let after = model.prompt_means(reward);
    let mut changes: Vec<Change> = baseline
        .prompt_means(reward)
        .into_iter()
        .filter_map(|(prompt, before)| {
            let after = *after.get(&prompt)?;
            Some(Change {
                prompt,
                before,
                after,
            })
        })
        .collect();
    changes.sort_by(|a, b| b.by().total_cmp(&a.by()).then_with(|| a.prompt.cmp(&b.prompt)));
    changes
}

/// Lists for every model and reward, with links to the images of the prompts that are `shown`.
pub fn section(evaluation: &Evaluation, shown: &[PromptIndex]) -> Option<Section> {
    let baseline = evaluation.baseline()?;
    let mut section = Section::new(format!(
        "Best, worst and most changed prompts of {}",
        evaluation.name
    ));
    section.say(&format!(
        "By the mean score of a prompt's images, against {}.",
        baseline.name
    ));
    let prompts: indexmap::IndexMap<PromptIndex, &str> = evaluation.prompts().into_iter().collect();
    let mut lists = 0;
    for model in evaluation.others() {
        for reward in &evaluation.rewards {
            let changes = changes(baseline, model, reward);
            if changes.is_empty() {
                continue;
            }
            let digits = evaluation.digits(reward);
            let lists_of = [
                ("Most improved", pick(&changes, |c| c.by() > 0.0, |c| c.by())),
                ("Most worsened", pick(&changes, |c| c.by() < 0.0, |c| -c.by())),
                (
                    "Most changed",
                    pick(&changes, |c| c.by() != 0.0, |c| c.by().abs()),
                ),
                ("Best", pick(&changes, |_| true, |c| c.after)),
                ("Worst", pick(&changes, |_| true, |c| -c.after)),
            ];
            let content: String = lists_of
                .iter()
                .filter(|(_, list)| !list.is_empty())
                .map(|(caption, list)| {
                    list_table(caption, (baseline, model), list, digits, &|prompt| {
                        named(
                            evaluation,
                            shown,
                            prompt,
                            prompts.get(&prompt).copied().unwrap_or_default(),
                        )
                    })
                })
                .collect();
            let content = format!(r#"<div class="lists">{content}</div>"#);
            let heading = format!("{} by {reward}", model.name);
            match lists {
                0 => section
                    .body
                    .push_str(&format!("<h3>{}</h3>{content}", escape(&heading))),
                _ => section.body.push_str(&fold(&heading, &content)),
            }
            lists += 1;
        }
    }
    (lists > 0).then_some(section)
}

/// The first few of those that `belong`, by `key`, the greatest first.
fn pick(changes: &[Change], belongs: impl Fn(&Change) -> bool, key: impl Fn(&Change) -> f64) -> Vec<&Change> {
    let mut order: Vec<&Change> = changes.iter().filter(|change| belongs(change)).collect();
    order.sort_by(|a, b| key(b).total_cmp(&key(a)));
    order.truncate(LISTED);
    order
}

fn list_table(
    caption: &str,
    (baseline, model): (&Model, &Model),
    changes: &[&Change],
    digits: usize,
    name: &dyn Fn(PromptIndex) -> Cell,
) -> String {
    let row = |change: &&Change| {
        vec![
            name(change.prompt),
            Cell::Number(fixed(change.before, digits)),
            Cell::Number(fixed(change.after, digits)),
            Cell::Number(signed(change.by(), digits + 1)),
        ]
    };
    let head = ["prompt", &baseline.name, &model.name, "change"].map(String::from);
    table(caption, &head, changes.iter().map(row).collect())
}

/// A prompt's text, linked to its images if they are in the page.
fn named(evaluation: &Evaluation, shown: &[PromptIndex], prompt: PromptIndex, text: &str) -> Cell {
    match shown.contains(&prompt) {
        true => {
            let (id, text) = (anchor(evaluation, prompt), escape(text));
            Cell::Markup(format!(r##"<a href="#{id}">{text}</a>"##))
        }
        false => Cell::text(text),
    }
}

/// A number with its sign and so many digits behind the point.
pub fn signed(value: f64, digits: usize) -> String {
    let text = fixed(value, digits);
    match value > 0.0 && text.contains(|c: char| c.is_ascii_digit() && c != '0') {
        true => format!("+{text}"),
        false => text,
    }
}

/// The id of a prompt's images in the page.
pub fn anchor(evaluation: &Evaluation, prompt: PromptIndex) -> String {
    super::html::slug(&format!("p-{}-{prompt}", evaluation.name))
}
