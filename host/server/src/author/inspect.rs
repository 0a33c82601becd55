//! `policy inspect`: what a file is.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use pointsman_plugin::{Engine, EngineLimits, LogSink, Module, Profile};
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;

/// What is known of a policy's file.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// `chooser`, `table` or `weights`.
    pub shape: String,
    /// What it exports besides.
    pub also: Vec<&'static str>,
    /// What it imports, as `interface#function`.
    pub imports: Vec<String>,
    /// The file's size.
    pub size_bytes: usize,
    /// Its SHA-256, in hexadecimal.
    pub digest: String,
    /// The JSON schema of its `config`, if it has one.
    pub config_schema: Option<Value>,
}

/// Compiles a file, for a few instances that nobody but the author sees.
///
/// # Errors
/// If it cannot be read, or is no policy for this balancer.
pub fn load(
    file: &Path,
    profile: Profile,
    limits: EngineLimits,
    sink: LogSink,
) -> Result<Module, Failure> {
    let bytes = fs::read(file)
        .map_err(|error| Failure::input(format!("cannot read {}: {error}", file.display())))?;
    let engine = Engine::new(limits, sink).and_then(|engine| engine.of_profile(profile));
    let engine = engine.context("cannot start the runtime for plugins")?;
    let module = engine.load(&bytes);
    module.map_err(|error| Failure::input(format!("{}: {error}", file.display())))
}

/// Looks at a file.
///
/// # Errors
/// As [`load`]; or if it fails to tell its schema, or what it tells is no JSON.
pub fn inspect(file: &Path, profile: Profile) -> Result<Inspection, Failure> {
    let limits = EngineLimits { instances_max: 1, ..EngineLimits::default() };
    let module = load(file, profile, limits, Arc::new(|_| {}))?;
    let optional = [
        ("feedback", module.has_feedback()),
        ("state", module.has_state()),
        ("schema", module.has_schema()),
    ];
    let schema = module.config_schema().map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let schema = schema.map(|text| serde_json::from_str(&text)).transpose();
    Ok(Inspection {
        shape: module.shape().to_string(),
        also: optional.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect(),
        imports: module.imports().to_vec(),
        size_bytes: module.size_bytes(),
        digest: module.digest().to_owned(),
        config_schema: schema
            .with_context(|| format!("{}: its schema is no JSON", file.display()))?,
    })
}

impl Inspection {
    /// For a person.
    pub fn to_text(&self) -> String {
        let list = |all: &[String]| if all.is_empty() { "nothing".into() } else { all.join(", ") };
        let also: Vec<_> = self.also.iter().map(|name| (*name).to_owned()).collect();
        let schema = self.config_schema.as_ref();
        let schema = schema.map_or_else(|| "not told".into(), |schema| format!("{schema:#}"));
        format!(
            "shape    {}\nalso     {}\nimports  {}\nsize     {:.1} KiB\ndigest   {}\nconfig   {}\n",
            self.shape,
            list(&also),
            list(&self.imports),
            self.size_bytes as f64 / 1024.0,
            self.digest,
            schema,
        )
    }
}
