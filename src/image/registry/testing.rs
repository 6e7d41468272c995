// SPDX-License-Identifier: Apache-2.0
//! A registry that does what a test tells it, right or wrong.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::image::{Digest, Name, Reference};

/// What a client asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method and path with query: `GET /v2/`.
    pub line: String,
    /// Headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }
}

/// What to answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers, `Content-Length` aside.
    pub headers: Vec<(String, String)>,
    /// The body that is announced.
    pub body: Vec<u8>,
    /// How much of it comes before the connection is closed.
    pub cut: usize,
}

impl Reply {
    /// A status and nothing else.
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: usize::MAX }
    }

    /// With a header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    fn body(body: &[u8]) -> Self {
        Self { body: body.to_owned(), ..Self::status(200) }
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut head =
            format!("HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n", self.status, self.body.len());
        self.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        stream.write_all((head + "\r\n").as_bytes())?;
        stream.write_all(&self.body[..self.cut.min(self.body.len())])
    }
}

/// Changes the reply that would be right.
pub type Fault = Box<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

/// Type and bytes by path.
type Content = BTreeMap<String, (String, Vec<u8>)>;

/// A registry on loopback, without TLS.
pub struct FakeRegistry {
    address: SocketAddr,
    content: Arc<Mutex<Content>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FakeRegistry {
    /// An empty one that answers as it should.
    pub fn start() -> Self {
        Self::with_fault(|_, reply| reply)
    }

    /// An empty one whose answers pass through `fault`.
    pub fn with_fault(fault: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let registry = Self { address, content: Arc::default(), requests: Arc::default() };
        let (content, requests) = (Arc::clone(&registry.content), Arc::clone(&registry.requests));
        let fault: Arc<Fault> = Arc::new(Box::new(fault));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (content, requests, fault) = (Arc::clone(&content), Arc::clone(&requests), Arc::clone(&fault));
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    // What is no HTTP, such as the beginning of TLS, gets what a server in Go would answer.
                    let Some(request) = read(&stream) else {
                        let _ = Reply::status(400).send(&mut stream);
                        return;
                    };
                    requests.lock().unwrap().push(request.clone());
                    let right = answer(&request, &content.lock().unwrap());
                    // The client may have seen enough.
                    let _ = fault(&request, right).send(&mut stream);
                });
            }
        });
        registry
    }

    /// Where it answers.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// A reference to something here.
    pub fn reference(&self, name: &str) -> Reference {
        Reference::parse(name, &self.host()).unwrap()
    }

    /// The repository that all images are in.
    pub fn name(&self) -> Name {
        self.reference("app").name().clone()
    }

    /// Adds a blob; gives its descriptor.
    pub fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = Digest::of(content);
        let path = format!("/v2/app/blobs/{digest}");
        self.content.lock().unwrap().insert(path, ("application/octet-stream".into(), content.to_owned()));
        json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    }

    /// Adds a manifest or index under its digest, and under a tag; gives its descriptor.
    pub fn manifest(&self, tag: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let media_type = document["mediaType"].as_str().unwrap().to_owned();
        let digest = Digest::of(&bytes);
        let mut content = self.content.lock().unwrap();
        for name in [tag, &digest.to_string()] {
            content.insert(format!("/v2/app/manifests/{name}"), (media_type.clone(), bytes.clone()));
        }
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Adds an image with these layers, which are not packed.
    pub fn image(&self, tag: &str, architecture: &str, layers: &[&[u8]]) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
        let configuration = json!({ "architecture": architecture, "os": "linux", "rootfs": rootfs }).to_string();
        let layer = |layer: &&[u8]| self.blob("application/vnd.oci.image.layer.v1.tar", layer);
        let layers: Vec<_> = layers.iter().map(layer).collect();
        let config = self.blob("application/vnd.oci.image.config.v1+json", configuration.as_bytes());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        self.manifest(tag, &json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers }))
    }

    /// What was asked for so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Requests for a blob, with the range that each asked for.
    pub fn blob_requests(&self, content: &[u8]) -> Vec<Option<String>> {
        let path = format!("blobs/{}", Digest::of(content));
        let asked = self.requests().into_iter().filter(|request| request.path().ends_with(&path));
        asked.map(|request| request.header("range").map(str::to_owned)).collect()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next()?.ok()?;
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    line.ends_with("HTTP/1.1").then_some(Request { line, headers })
}

fn answer(request: &Request, content: &Content) -> Reply {
    if request.path() == "/v2/" {
        return Reply::status(200);
    }
    let Some((media_type, bytes)) = content.get(request.path()) else { return Reply::status(404) };
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match range {
        Some(from) if from >= bytes.len() => Reply::status(416),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            Reply { status: 206, ..Reply::body(&bytes[from..]) }.header("content-range", range)
        }
        None => Reply::body(bytes).header("content-type", media_type.clone()),
    }
}
