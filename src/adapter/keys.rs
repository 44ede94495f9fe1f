//! What a key of a LoRA file says: the component, the module, and which of its tensors it is.

use super::names;
use crate::model_folder::Component;

/// How a file names a module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModuleName {
    /// The module's path, with dots.
    Path(String),
    /// The path with underscores for dots, of a network whose names are not known.
    Flat(String),
}

impl ModuleName {
    /// The path, or the flat name where the path is not known.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Path(name) | Self::Flat(name) => name,
        }
    }

    /// The name with underscores for dots.
    pub fn flat(&self) -> String {
        names::flat(self.as_str())
    }
}

/// Who spells keys like that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// `unet.MODULE.lora_A.weight`: diffusers, this program.
    Diffusers,
    /// `unet.MODULE.lora.down.weight`: older versions of diffusers.
    OldDiffusers,
    /// `base_model.model.MODULE.lora_A.weight`, or without any prefix: PEFT.
    Peft,
    /// `lora_unet_MODULE.lora_down.weight`, with diffusers' names of modules: Kohya's scripts.
    Kohya,
    /// The same, with the names of Stability's code: Kohya's scripts, for SDXL.
    KohyaLdm,
}

/// What a tensor of a LoRA file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Down,
    Up,
    Alpha,
}

const ROLES: [(&str, Role); 11] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// What a key says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub component: Component,
    pub module: ModuleName,
    pub role: Role,
    pub spelling: Spelling,
}

pub(super) fn is_factor(key: &str) -> bool {
    role_of(key).is_some_and(|(_, role)| role != Role::Alpha)
}

fn role_of(key: &str) -> Option<(&str, Role)> {
    ROLES
        .into_iter()
        .find_map(|(suffix, role)| Some((key.strip_suffix(suffix)?, role)))
}

/// Component prefixes of Kohya's scripts.
const FLAT: [(&str, Component); 4] = [
    ("lora_unet_", Component::Unet),
    ("lora_te_", Component::TextEncoder),
    ("lora_te1_", Component::TextEncoder),
    ("lora_te2_", Component::TextEncoder2),
];

/// Component prefixes of diffusers.
const DOTTED: [(&str, Component); 4] = [
    ("unet.", Component::Unet),
    ("transformer.", Component::Transformer),
    ("text_encoder.", Component::TextEncoder),
    ("text_encoder_2.", Component::TextEncoder2),
];

pub(super) fn parse(key: &str) -> Option<Key> {
    let (name, role) = role_of(key)?;
    let below = |prefixes: [(&str, Component); 4], name: &'_ str| {
        let found = prefixes
            .into_iter()
            .find(|(prefix, _)| name.starts_with(prefix))?;
        Some((found.0.len(), found.1))
    };
    if let Some((length, component)) = below(FLAT, name) {
        let given = &name[length..];
        let flat = names::from_ldm(given);
        let spelling = match flat == given {
            true => Spelling::Kohya,
            false => Spelling::KohyaLdm,
        };
        let module = names::dotted(&flat).map_or(ModuleName::Flat(flat), ModuleName::Path);
        return Some(Key {
            component,
            module,
            role,
            spelling,
        });
    }
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let prefixed = below(DOTTED, name);
    let (length, component) = prefixed.unwrap_or((0, Component::Unet));
    let spelling = match (prefixed, key.contains("lora_A") || key.contains("lora_B")) {
        (None, _) => Spelling::Peft,
        (Some(_), true) => Spelling::Diffusers,
        (Some(_), false) => Spelling::OldDiffusers,
    };
    Some(Key {
        component,
        module: ModuleName::Path(from_processor(&name[length..], component)),
        role,
        spelling,
    })
}

/// `attn1.processor.to_q_lora` and `self_attn.to_q_lora` of older diffusers, less their `_lora`, are the modules
/// `attn1.to_q` and `self_attn.q_proj`.
fn from_processor(path: &str, component: Component) -> String {
    match path.split_once(".processor.") {
        Some((attention, "to_out")) => return format!("{attention}.to_out.0"),
        Some((attention, projection)) => return format!("{attention}.{projection}"),
        None => {}
    }
    let is_text = matches!(component, Component::TextEncoder | Component::TextEncoder2);
    match path.rsplit_once(".to_") {
        Some((attention, which @ ("q" | "k" | "v" | "out"))) if is_text => {
            format!("{attention}.{which}_proj")
        }
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(key: &str) -> (Component, String, Role) {
        let key = parse(key).unwrap_or_else(|| panic!("{key}"));
        (key.component, key.module.as_str().to_owned(), key.role)
    }

    #[test]
    fn every_spelling_leads_to_the_same_module() {
        let attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn1";
        let flat = names::flat(attention);
        for key in [
            format!("unet.{attention}.to_out.0.lora_A.weight"),
            format!("unet.{attention}.to_out.0.lora.down.weight"),
            format!("unet.{attention}.processor.to_out_lora.down.weight"),
            format!("base_model.model.{attention}.to_out.0.lora_A.weight"),
            format!("{attention}.to_out.0.lora_A.weight"),
            format!("lora_unet_{flat}_to_out_0.lora_down.weight"),
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0.lora_down.weight".into(),
        ] {
            let expected = (Component::Unet, format!("{attention}.to_out.0"), Role::Down);
            assert_eq!(parsed(&key), expected, "{key}");
        }
    }

    #[test]
    fn text_encoders_are_told_apart() {
        for (key, component) in [
            ("lora_te_mlp.alpha", Component::TextEncoder),
            ("lora_te1_mlp.alpha", Component::TextEncoder),
            ("lora_te2_mlp.alpha", Component::TextEncoder2),
            ("text_encoder.a.lora_B.weight", Component::TextEncoder),
            ("text_encoder_2.a.lora_B.weight", Component::TextEncoder2),
        ] {
            assert_eq!(parsed(key).0, component, "{key}");
        }
        assert!(parse("unet.a.lora_magnitude_vector").is_none());
    }

    #[test]
    fn text_encoders_in_the_old_spelling_have_their_own_names() {
        let layer = "text_model.encoder.layers.0";
        for (old, module) in [
            ("self_attn.to_out_lora.up.weight", "self_attn.out_proj"),
            ("mlp.fc1.lora_linear_layer.up.weight", "mlp.fc1"),
        ] {
            let key = format!("text_encoder.{layer}.{old}");
            assert_eq!(
                parsed(&key),
                (Component::TextEncoder, format!("{layer}.{module}"), Role::Up)
            );
        }
    }

    #[test]
    fn unknown_networks_keep_their_flat_names() {
        let key = parse("lora_unet_joint_blocks_0_x_block.lora_up.weight").unwrap();
        assert_eq!(key.module, ModuleName::Flat("joint_blocks_0_x_block".into()));
    }
}
