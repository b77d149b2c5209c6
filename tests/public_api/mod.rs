//! The public items of the library, read from its sources as rustdoc sees them, and their documentation.

pub mod markdown;
pub mod shown;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use syn::{Attribute, Expr, ExprLit, ImplItem, Item, Lit, Meta, TraitItem, UseTree, Visibility};

/// A public item.
#[derive(Debug, Clone)]
pub struct Api {
    /// From the crate's root, as a user writes it: `plan::Memory::of`.
    pub path: String,
    pub docs: String,
    /// What stands for it in code beside its name: fields, variants and methods of a type, items of a module.
    pub parts: Vec<String>,
    /// Whether it is a method or a constant of a type.
    pub is_associated: bool,
}

impl Api {
    pub fn name(&self) -> &str {
        self.path.rsplit("::").next().unwrap()
    }

    /// The type of a method, the module of anything else.
    pub fn parent(&self) -> &str {
        self.path.rsplit_once("::").map_or("", |(parent, _)| parent)
    }
}

/// Where something is defined: the modules down to it, and its name.
type Definition = Vec<String>;

#[derive(Default)]
struct Module {
    docs: String,
    items: Vec<Item>,
    is_public: bool,
}

struct Crate {
    modules: BTreeMap<Definition, Module>,
    /// Methods and constants by type.
    associated: BTreeMap<Definition, Vec<(String, String)>>,
}

/// The public items of the crate whose root is `root`.
pub fn read(root: &Path) -> Vec<Api> {
    let mut read = Crate { modules: BTreeMap::new(), associated: BTreeMap::new() };
    read.add_file(vec![], true, root, root.parent().unwrap());
    read.collect_associated();
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    read.visit_module(&vec![], "", &mut found, &mut seen);
    found
}

impl Crate {
    /// The module `path` in `file`, whose own modules are in `folder`.
    fn add_file(&mut self, path: Definition, is_public: bool, file: &Path, folder: &Path) {
        let text =
            std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for item in &parsed.items {
            let Item::Mod(module) = item else { continue };
            if module.content.is_none() && !is_for_tests(&module.attrs) {
                let name = module.ident.to_string();
                let child = path.iter().cloned().chain([name.clone()]).collect();
                let own = folder.join(&name);
                let candidates: [PathBuf; 2] = [own.join("mod.rs"), own.with_extension("rs")];
                let file = candidates.iter().find(|file| file.exists()).expect("a module has a file");
                self.add_file(child, is_public_item(&module.vis), file, &own);
            }
        }
        self.modules.insert(path, Module { docs: docs(&parsed.attrs), items: parsed.items, is_public });
    }

    /// Where `path`, written in `module`, leads to.
    fn resolve(&self, module: &Definition, path: &[String]) -> Option<Definition> {
        let [first, rest @ ..] = path else { return Some(module.clone()) };
        let up = |levels: usize| module[..module.len() - levels].to_vec();
        match first.as_str() {
            "crate" => return self.resolve(&vec![], rest),
            "self" => return self.resolve(module, rest),
            "super" => return self.resolve(&up(1), rest),
            _ => {}
        }
        let here: Definition = module.iter().cloned().chain([first.clone()]).collect();
        let items = &self.modules.get(module)?.items;
        // A name may stand for a module and for a function: the module is meant before `::`.
        if rest.is_empty() {
            if items.iter().any(|item| named(item).is_some_and(|(name, ..)| name == *first)) {
                return Some(here);
            }
            let uses = items.iter().filter_map(|item| if let Item::Use(it) = item { Some(it) } else { None });
            let target = uses.flat_map(|it| imports(&it.tree)).find(|(_, name)| name == first);
            // `use x;` of another crate leads nowhere.
            if let Some((target, _)) = target.filter(|(target, _)| target[..] != path[..]) {
                return self.resolve(module, &target);
            }
        }
        self.modules.contains_key(&here).then(|| self.resolve(&here, rest)).flatten()
    }

    fn collect_associated(&mut self) {
        let mut all: BTreeMap<Definition, Vec<(String, String)>> = BTreeMap::new();
        for (path, module) in &self.modules {
            for item in &module.items {
                let Item::Impl(block) = item else { continue };
                let syn::Type::Path(of) = &*block.self_ty else { continue };
                let of: Vec<String> = of.path.segments.iter().map(|part| part.ident.to_string()).collect();
                if block.trait_.is_none() && !is_for_tests(&block.attrs) {
                    let of = self.resolve(path, &of).expect("a type is defined or imported");
                    all.entry(of).or_default().extend(block.items.iter().filter_map(associated));
                }
            }
        }
        self.associated = all;
    }

    fn visit_module(
        &self,
        path: &Definition,
        shown_as: &str,
        found: &mut Vec<Api>,
        seen: &mut HashSet<Definition>,
    ) {
        let module = &self.modules[path];
        let at = found.len();
        for item in &module.items {
            match item {
                Item::Use(it) if is_public_item(&it.vis) => {
                    for (target, name) in imports(&it.tree) {
                        if let Some(definition) = self.resolve(path, &target) {
                            self.visit(&definition, &join(shown_as, &name), found, seen);
                        }
                    }
                }
                Item::Mod(it) if is_public_item(&it.vis) => {
                    let name = it.ident.to_string();
                    let child = path.iter().cloned().chain([name.clone()]).collect();
                    self.visit(&child, &join(shown_as, &name), found, seen);
                }
                _ => {
                    if let Some((name, ..)) = named(item).filter(|(_, vis, _)| is_public_item(vis)) {
                        let definition = path.iter().cloned().chain([name.clone()]).collect();
                        self.visit(&definition, &join(shown_as, &name), found, seen);
                    }
                }
            }
        }
        let inside = |api: &&Api| api.parent() == shown_as;
        let parts = found[at..].iter().filter(inside).map(|api| api.name().to_owned()).collect();
        let path = shown_as.to_owned();
        found.push(Api { path, docs: module.docs.clone(), parts, is_associated: false });
    }

    fn visit(
        &self,
        definition: &Definition,
        shown_as: &str,
        found: &mut Vec<Api>,
        seen: &mut HashSet<Definition>,
    ) {
        if !seen.insert(definition.clone()) {
            return;
        }
        if self.modules.get(definition).is_some_and(|module| module.is_public) {
            return self.visit_module(definition, shown_as, found, seen);
        }
        let (name, module) = definition.split_last().expect("an item has a name");
        let of_name = |item: &&Item| named(item).is_some_and(|(it, ..)| it == *name);
        let item = self.modules[module].items.iter().find(of_name);
        let item = item
            .unwrap_or_else(|| panic!("{} is shown as {shown_as}, and is no item", definition.join("::")));
        let (_, _, attributes) = named(item).expect("found by its name");
        let associated = self.associated.get(definition).map_or(&[][..], Vec::as_slice);
        let methods = associated.iter().map(|(name, _)| name.clone());
        let parts = parts(item).into_iter().chain(methods).collect();
        let path = shown_as.to_owned();
        found.push(Api { path, docs: docs(attributes), parts, is_associated: false });
        found.extend(associated.iter().map(|(name, docs)| Api {
            path: join(shown_as, name),
            docs: docs.clone(),
            parts: vec![],
            is_associated: true,
        }));
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}::{name}")
    }
}

fn is_public_item(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

/// The text of `///` and `//!`.
fn docs(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Name, visibility and attributes of an item that is neither a module nor an import.
fn named(item: &Item) -> Option<(String, &Visibility, &[Attribute])> {
    let (name, vis, attributes) = match item {
        Item::Struct(it) => (&it.ident, &it.vis, &it.attrs),
        Item::Enum(it) => (&it.ident, &it.vis, &it.attrs),
        Item::Fn(it) => (&it.sig.ident, &it.vis, &it.attrs),
        Item::Trait(it) => (&it.ident, &it.vis, &it.attrs),
        Item::Const(it) => (&it.ident, &it.vis, &it.attrs),
        Item::Static(it) => (&it.ident, &it.vis, &it.attrs),
        Item::Type(it) => (&it.ident, &it.vis, &it.attrs),
        _ => return None,
    };
    Some((name.to_string(), vis, attributes))
}

fn associated(item: &ImplItem) -> Option<(String, String)> {
    let (name, vis, attributes) = match item {
        ImplItem::Fn(it) => (&it.sig.ident, &it.vis, &it.attrs),
        ImplItem::Const(it) => (&it.ident, &it.vis, &it.attrs),
        _ => return None,
    };
    is_public_item(vis).then(|| (name.to_string(), docs(attributes)))
}

/// Public fields, those of variants, variants, and methods of a trait.
fn parts(item: &Item) -> Vec<String> {
    let fields = |fields: &syn::Fields, all: bool| -> Vec<String> {
        let public = fields.iter().filter(|field| all || is_public_item(&field.vis));
        public.filter_map(|field| field.ident.as_ref()).map(ToString::to_string).collect()
    };
    match item {
        Item::Struct(it) => fields(&it.fields, false),
        Item::Enum(it) => {
            let of =
                |variant: &syn::Variant| [vec![variant.ident.to_string()], fields(&variant.fields, true)];
            it.variants.iter().flat_map(of).flatten().collect()
        }
        Item::Trait(it) => {
            let methods =
                it.items.iter().filter_map(|it| if let TraitItem::Fn(it) = it { Some(it) } else { None });
            methods.map(|method| method.sig.ident.to_string()).collect()
        }
        _ => vec![],
    }
}

/// What a `use` brings: each path, and the name that it gets.
fn imports(tree: &UseTree) -> Vec<(Definition, String)> {
    match tree {
        UseTree::Path(it) => {
            let below = imports(&it.tree).into_iter();
            let first = it.ident.to_string();
            below
                .map(|(path, name)| match path[..] == ["self"] {
                    true => (vec![first.clone()], first.clone()),
                    false => ([first.clone()].into_iter().chain(path).collect(), name),
                })
                .collect()
        }
        UseTree::Name(it) => vec![(vec![it.ident.to_string()], it.ident.to_string())],
        UseTree::Rename(it) => vec![(vec![it.ident.to_string()], it.rename.to_string())],
        UseTree::Group(it) => it.items.iter().flat_map(imports).collect(),
        UseTree::Glob(_) => vec![],
    }
}
