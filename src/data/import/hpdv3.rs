//! HPDv3 (Ma et al. 2025; `MizzenAI/HPDv3`): a JSON array of pairs, `path1` being the preferred picture and `path2` the other.

use super::list::{Comparison, Format};
use super::records::Fields;
use crate::data::pair::Preference;
use crate::pairs::Choose;

pub(super) const FORMAT: Format = Format {
    name: "hpdv3",
    remedy: "HPDv3 has objects with prompt, path1 (preferred) and path2.",
    choose: Choose::All,
    read,
};

fn read(fields: &Fields, _: Choose) -> Result<Vec<Comparison<'_>>, String> {
    Ok(vec![Comparison {
        caption: fields.text(&["prompt"])?,
        images: [fields.text(&["path1"])?, fields.text(&["path2"])?],
        preference: Some(Preference::First),
        scores: None,
    }])
}
