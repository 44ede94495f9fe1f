//! Names of modules, in the spellings that adapter files have for them.
//!
//! | spelling | example | where |
//! |---|---|---|
//! | dotted | `down_blocks.1.attentions.0.proj_in` | diffusers, PEFT, this program |
//! | flat | `down_blocks_1_attentions_0_proj_in` | Kohya's scripts: SD 1.x and 2.x, text encoders |
//! | LDM | `input_blocks_4_1_proj_in` | Kohya's scripts: SDXL's UNet, as Stability's own code numbers its blocks |

/// Parts of module paths that have an underscore, in diffusers' UNets and CLIP's text encoders.
const COMPOUND: [&str; 37] = [
    "add_embedding",
    "class_embedding",
    "conv_in",
    "conv_norm_out",
    "conv_out",
    "conv_shortcut",
    "down_blocks",
    "encoder_hid_proj",
    "final_layer_norm",
    "k_proj",
    "layer_norm1",
    "layer_norm2",
    "linear_1",
    "linear_2",
    "mid_block",
    "norm_out",
    "out_proj",
    "position_embedding",
    "pre_layrnorm",
    "proj_in",
    "proj_out",
    "q_proj",
    "self_attn",
    "text_model",
    "text_projection",
    "time_emb_proj",
    "time_embedding",
    "to_add_out",
    "to_k",
    "to_out",
    "to_q",
    "to_v",
    "token_embedding",
    "transformer_blocks",
    "up_blocks",
    "v_proj",
    "visual_projection",
];

/// Parts without underscores, numbers aside.
const SIMPLE: [&str; 24] = [
    "attentions",
    "attn1",
    "attn2",
    "conv",
    "conv1",
    "conv2",
    "downsamplers",
    "embeddings",
    "encoder",
    "fc1",
    "fc2",
    "ff",
    "layers",
    "mlp",
    "net",
    "norm",
    "norm1",
    "norm2",
    "norm3",
    "op",
    "proj",
    "resnets",
    "upsamplers",
    "shortcut",
];

/// The path with underscores for dots.
pub fn flat(path: &str) -> String {
    path.replace('.', "_")
}

/// The path whose flat form `name` is; `None` if a part of it is not one of a UNet or of CLIP.
pub fn dotted(name: &str) -> Option<String> {
    let words: Vec<&str> = name.split('_').collect();
    let mut parts: Vec<String> = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let compound = (2..=3)
            .rev()
            .filter(|length| at + length <= words.len())
            .map(|length| (length, words[at..at + length].join("_")))
            .find(|(_, part)| COMPOUND.contains(&part.as_str()));
        let (length, part) = match compound {
            Some(found) => found,
            None => (1, simple(words[at])?),
        };
        parts.push(part);
        at += length;
    }
    Some(parts.join("."))
}

fn simple(word: &str) -> Option<String> {
    let is_number = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    (is_number || SIMPLE.contains(&word)).then(|| word.to_owned())
}

/// Layers outside the blocks: diffusers' flat name and Stability's.
const OUTSIDE: [(&str, &str); 6] = [
    ("conv_in", "input_blocks_0_0"),
    ("conv_out", "out_2"),
    ("time_embedding_linear_1", "time_embed_0"),
    ("time_embedding_linear_2", "time_embed_2"),
    ("add_embedding_linear_1", "label_emb_0_0"),
    ("add_embedding_linear_2", "label_emb_0_2"),
];

/// Layers of a residual block: diffusers' name and Stability's.
const RESIDUAL: [(&str, &str); 4] = [
    ("conv1", "in_layers_2"),
    ("conv2", "out_layers_3"),
    ("time_emb_proj", "emb_layers_1"),
    ("conv_shortcut", "skip_connection"),
];

/// Blocks that Stability's numbering counts for one of diffusers' down or up blocks: two layers and the down-sampler, or
/// three layers. It is the same for all of SD 1.x, 2.x and XL.
const PER_BLOCK: usize = 3;

/// diffusers' flat name of a layer that is named as Stability's code does; other names stay.
pub fn from_ldm(name: &str) -> String {
    if let Some((ours, _)) = OUTSIDE.iter().find(|(_, theirs)| *theirs == name) {
        return (*ours).to_owned();
    }
    from_middle(name)
        .or_else(|| from_input(name))
        .or_else(|| from_output(name))
        .unwrap_or_else(|| name.to_owned())
}

fn from_middle(name: &str) -> Option<String> {
    let (part, rest) = number(name.strip_prefix("middle_block_")?)?;
    match part {
        0 | 2 => Some(format!("mid_block_resnets_{}_{}", part / 2, from_residual(rest)?)),
        1 => Some(format!("mid_block_attentions_0_{rest}")),
        _ => None,
    }
}

fn from_input(name: &str) -> Option<String> {
    let (index, rest) = number(name.strip_prefix("input_blocks_")?)?;
    let index = index.checked_sub(1)?;
    let (block, layer) = (index / PER_BLOCK, index % PER_BLOCK);
    match number(rest)? {
        (0, "op") => Some(format!("down_blocks_{block}_downsamplers_0_conv")),
        (0, rest) => Some(format!(
            "down_blocks_{block}_resnets_{layer}_{}",
            from_residual(rest)?
        )),
        (1, rest) => Some(format!("down_blocks_{block}_attentions_{layer}_{rest}")),
        _ => None,
    }
}

fn from_output(name: &str) -> Option<String> {
    let (index, rest) = number(name.strip_prefix("output_blocks_")?)?;
    let (block, layer) = (index / PER_BLOCK, index % PER_BLOCK);
    match number(rest)? {
        (0, rest) => Some(format!(
            "up_blocks_{block}_resnets_{layer}_{}",
            from_residual(rest)?
        )),
        // Behind the attention where the block has one.
        (1 | 2, "conv") => Some(format!("up_blocks_{block}_upsamplers_0_conv")),
        (1, rest) => Some(format!("up_blocks_{block}_attentions_{layer}_{rest}")),
        _ => None,
    }
}

fn from_residual(theirs: &str) -> Option<&'static str> {
    let found = RESIDUAL.iter().find(|(_, name)| *name == theirs);
    found.map(|(ours, _)| *ours)
}

/// A number and what follows it behind an underscore.
fn number(text: &str) -> Option<(usize, &str)> {
    let (digits, rest) = text.split_once('_')?;
    Some((digits.parse().ok()?, rest))
}

/// Stability's name of a layer of SDXL's UNet, given its path; `None` if SDXL has no such layer.
pub fn sdxl_ldm(path: &str) -> Option<String> {
    let name = flat(path);
    if let Some((_, theirs)) = OUTSIDE.iter().find(|(ours, _)| *ours == name) {
        return Some((*theirs).to_owned());
    }
    let parts: Vec<&str> = path.split('.').collect();
    let residual = |parts: &[&str]| {
        let found = RESIDUAL.iter().find(|(ours, _)| [*ours] == *parts);
        found.map(|(_, theirs)| *theirs)
    };
    match parts.as_slice() {
        ["mid_block", "attentions", "0", rest @ ..] => Some(format!("middle_block_1_{}", rest.join("_"))),
        ["mid_block", "resnets", layer @ ("0" | "1"), rest @ ..] => {
            let part = if *layer == "0" { 0 } else { 2 };
            Some(format!("middle_block_{part}_{}", residual(rest)?))
        }
        [
            side @ ("down_blocks" | "up_blocks"),
            block,
            kind,
            layer,
            rest @ ..,
        ] => {
            let (block, layer): (usize, usize) = (block.parse().ok()?, layer.parse().ok()?);
            let (name, first) = match *side {
                "down_blocks" => ("input_blocks", 1),
                _ => ("output_blocks", 0),
            };
            let index = PER_BLOCK * block + first;
            let at = |offset: usize| format!("{name}_{}", index + offset);
            match (*side, *kind, rest) {
                (_, "attentions", _) => Some(format!("{}_1_{}", at(layer), rest.join("_"))),
                (_, "resnets", _) => Some(format!("{}_0_{}", at(layer), residual(rest)?)),
                ("down_blocks", "downsamplers", ["conv"]) => Some(format!("{}_0_op", at(PER_BLOCK - 1))),
                // SDXL's blocks that enlarge all have attention.
                ("up_blocks", "upsamplers", ["conv"]) => Some(format!("{}_2_conv", at(PER_BLOCK - 1))),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_come_back() {
        for path in [
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj",
            "mid_block.resnets.1.time_emb_proj",
            "text_model.encoder.layers.11.self_attn.out_proj",
            "text_model.final_layer_norm",
            "add_embedding.linear_2",
            "conv_in",
        ] {
            assert_eq!(dotted(&flat(path)).as_deref(), Some(path));
        }
        assert_eq!(dotted("joint_blocks_0_x_block"), None);
        assert_eq!(dotted(""), None);
    }

    #[test]
    fn blocks_of_stabilitys_code_are_those_of_diffusers() {
        for (theirs, ours) in [
            ("input_blocks_5_1_proj_in", "down_blocks_1_attentions_1_proj_in"),
            ("input_blocks_8_1_proj_in", "down_blocks_2_attentions_1_proj_in"),
            ("middle_block_1_proj_in", "mid_block_attentions_0_proj_in"),
            ("output_blocks_5_1_proj_in", "up_blocks_1_attentions_2_proj_in"),
            ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
            ("output_blocks_2_1_conv", "up_blocks_0_upsamplers_0_conv"),
            ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
            ("middle_block_2_out_layers_3", "mid_block_resnets_1_conv2"),
            ("out_2", "conv_out"),
            ("down_blocks_0_attentions_0_x", "down_blocks_0_attentions_0_x"),
        ] {
            assert_eq!(from_ldm(theirs), ours);
        }
    }
}
