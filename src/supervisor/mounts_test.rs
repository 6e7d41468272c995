// SPDX-License-Identifier: Apache-2.0
use proptest::prelude::*;

use super::*;

fn volume(name: Option<&str>, target: &str, read_only: bool, copy: bool) -> Wish {
    Wish { target: target.into(), what: Wished::Volume { name: name.map(str::to_owned), copy }, read_only }
}

fn bind(path: &str, target: &str, read_only: bool, create: bool) -> Wish {
    Wish { target: target.into(), what: Wished::Bind { path: path.into(), create }, read_only }
}

#[test]
fn volumes_are_read_as_docker_reads_them() {
    for (text, wish) in [
        ("/data", volume(None, "/data", false, true)),
        ("db:/data", volume(Some("db"), "/data", false, true)),
        ("db:/data/:ro,nocopy", volume(Some("db"), "/data", true, false)),
        ("/srv:/a/../b//c/.:rw", bind("/srv", "/b/c", false, true)),
        ("./here:/x:z", bind("./here", "/x", false, true)),
        ("/srv:/x:ro,cached", bind("/srv", "/x", true, true)),
    ] {
        assert_eq!(Wish::volume(text), Ok(wish), "{text}");
    }
    for (text, why) in [
        ("", "no absolute path"),
        ("data", "no absolute path"),
        ("db:data", "no absolute path"),
        ("a/b:/x", "no name of a volume"),
        ("x:/x", "no name of a volume"),
        (":/x", "names nothing"),
        ("/a:/", "root"),
        ("/a:/b/..", "root"),
        ("/a:/b:/c:/d", "colons"),
        ("/a:/b:r", "no option"),
        ("/a:/b:ro,rw", "twice"),
        ("/a:/b:rshared", "propagate"),
    ] {
        assert!(Wish::volume(text).unwrap_err().why.contains(why), "{text}: {:?}", Wish::volume(text));
    }
}

#[test]
fn mounts_are_read_as_docker_reads_them() {
    let memory = |options: &str| Wish { target: "/t".into(), what: Wished::Memory(options.into()), read_only: false };
    for (text, wish) in [
        ("type=bind,source=/srv,target=/x", bind("/srv", "/x", false, false)),
        ("type=bind,src=./a,dst=/x,readonly", bind("./a", "/x", true, false)),
        ("type=bind,src=/a,destination=/x,ro=false,bind-propagation=rprivate", bind("/a", "/x", false, false)),
        ("\"type=bind\",\"src=/a,b\"\"c\",target=/x", bind("/a,b\"c", "/x", false, false)),
        ("target=/x", volume(None, "/x", false, true)),
        ("src=db,dst=/x,volume-nocopy,volume-driver=local", volume(Some("db"), "/x", false, false)),
        ("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700", memory("size=1m,mode=700")),
        ("type=tmpfs,target=/t", memory("")),
    ] {
        assert_eq!(Wish::mount(text), Ok(wish), "{text}");
    }
    for (text, why) in [
        ("", "not known"),
        ("type=bind,source=/a", "no target"),
        ("type=bind,target=/x", "has a source"),
        ("type=bind,source=a,target=/x", "no absolute path"),
        ("type=nfs,target=/x", "no type"),
        ("type=tmpfs,source=/a,target=/x", "no source"),
        ("type=volume,target=/x,tmpfs-size=1m", "options of a tmpfs"),
        ("type=volume,target", "wants a value"),
        ("target=/x,readonly=maybe", "neither"),
        ("target=/x,volume-driver=nfs", "only driver"),
        ("target=/x,size=1", "not known"),
        ("\"target=/x", "not closed"),
        ("\"target=/x\"y", "closing quote"),
    ] {
        assert!(Wish::mount(text).unwrap_err().why.contains(why), "{text}: {:?}", Wish::mount(text));
    }
}

proptest! {
    #[test]
    fn whatever_is_understood_has_a_target_that_stays_below_the_root(text in "[a-z./:,=\"-]{0,40}") {
        let named = Wish::mount(&format!("type=bind,source=/s,target=/{}", text.replace([',', '"'], "")));
        for wish in [Wish::volume(&text), Wish::mount(&text), Wish::of_image(&text), named].into_iter().flatten() {
            let parts: Vec<_> = wish.target.split('/').collect();
            prop_assert!(parts.len() > 1 && parts[0].is_empty(), "{:?}", wish);
            prop_assert!(parts[1..].iter().all(|part| !matches!(*part, "" | "." | "..")), "{:?}", wish);
            if let Wished::Volume { name: Some(name), .. } = wish.what {
                prop_assert!(!name.contains('/') && !name.starts_with('.'));
            }
        }
    }

    #[test]
    fn what_is_quoted_comes_back(values in prop::collection::vec("[ -~]{0,8}", 1..4)) {
        let quoted: Vec<_> = values.iter().map(|value| format!("\"{}\"", value.replace('"', "\"\""))).collect();
        prop_assert_eq!(fields(&quoted.join(",")).unwrap(), values);
    }
}
