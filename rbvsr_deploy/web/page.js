"use strict";
// Uploads what is dropped or chosen, and deletes jobs. Gradio makes the page's elements later than
// this runs, so that all events are taken at the document.
(() => {
  const byId = (id) => document.getElementById(id);
  let request = null; // of the upload in progress
  let job = null; // its job

  function showUpload(text, fraction) {
    byId("rb-upload").hidden = text === null;
    byId("rb-drop-text").hidden = text !== null;
    document.querySelector(".rb-choose").hidden = text !== null;
    if (text === null) return;
    byId("rb-upload-text").textContent = text;
    byId("rb-upload").querySelector("progress").value = fraction;
  }
  function showError(text) {
    byId("rb-upload-error").textContent = text;
    byId("rb-upload-error").hidden = text === "";
  }

  function send(method, url, body, onProgress) {
    return new Promise((done, failed) => {
      request = new XMLHttpRequest();
      request.open(method, url);
      request.upload.onprogress = (event) => onProgress && onProgress(event.loaded);
      request.onload = () => request.status < 300
        ? done(request.responseText) : failed(new Error(request.responseText));
      request.onerror = () => failed(new Error("The server does not answer."));
      request.onabort = () => failed(new Error(""));
      request.send(body);
    });
  }

  // files: [{name, file}]
  async function upload(name, kind, files) {
    if (request !== null) return;
    const size = files.reduce((sum, { file }) => sum + file.size, 0);
    let sent = 0;
    const show = (loaded) => {
      const percent = Math.floor(100 * (sent + loaded) / Math.max(1, size));
      showUpload("Uploading " + name + ": " + percent + "%", percent / 100);
    };
    showError("");
    show(0);
    try {
      const announced = JSON.stringify({ name, kind, size, files: files.length });
      job = JSON.parse(await send("POST", "jobs", announced)).job;
      for (const { name, file } of files) {
        await send("PUT", "jobs/" + job + "/input?name=" + encodeURIComponent(name), file, show);
        sent += file.size;
      }
      await send("POST", "jobs/" + job + "/uploaded", "");
      location.search = "?job=" + job;
    } catch (error) {
      if (job !== null) fetch("jobs/" + job, { method: "DELETE" });
      showUpload(null);
      const text = error.message;
      showError(text && text[0].toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : "."));
      request = job = null;
    }
  }

  // Only files directly in the folder, as rbvsr-run reads them.
  function uploadFolder(name, files) {
    const images = files.filter((file) => !file.name.startsWith("."));
    if (images.length === 0) return showError("The folder " + name + " has no files.");
    return upload(name, "folder", images.map((file) => ({ name: file.name, file })));
  }

  async function filesOf(entry) {
    const reader = entry.createReader();
    const files = [];
    for (;;) {
      const entries = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (entries.length === 0) return files;
      for (const found of entries) {
        if (found.isFile) files.push(await new Promise((done, failed) => found.file(done, failed)));
      }
    }
  }

  async function dropped(items) {
    const entries = [...items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry);
    const [first] = entries;
    if (entries.length === 1 && first.isDirectory) {
      return uploadFolder(first.name, await filesOf(first));
    }
    const files = [];
    for (const entry of entries) {
      if (entry.isFile) files.push(await new Promise((done, failed) => entry.file(done, failed)));
    }
    if (files.length === 1) return upload(files[0].name, "file", [{ name: files[0].name, file: files[0] }]);
    if (files.length > 1) return uploadFolder("images", files);
    return showError("Drop a file or one folder.");
  }

  document.addEventListener("change", (event) => {
    const { id, files } = event.target;
    if ((id !== "rb-file" && id !== "rb-folder") || files.length === 0) return;
    if (id === "rb-file") {
      upload(files[0].name, "file", [{ name: files[0].name, file: files[0] }]);
    } else {
      const parts = (file) => file.webkitRelativePath.split("/");
      uploadFolder(parts(files[0])[0], [...files].filter((file) => parts(file).length === 2));
    }
    event.target.value = "";
  });
  document.addEventListener("click", async (event) => {
    if (event.target.id === "rb-upload-cancel" && request !== null) request.abort();
    const id = event.target.dataset && event.target.dataset.delete;
    if (!id) return;
    if (!confirm("Delete " + event.target.dataset.name + " and its output?")) return;
    await fetch("jobs/" + id, { method: "DELETE" });
    if (new URL(location).searchParams.get("job") === id) location.search = "";
  });
  const onPage = (event) => [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!onPage(event)) return;
    event.preventDefault();
    byId("rb-drop").classList.add("rb-over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) byId("rb-drop").classList.remove("rb-over");
  });
  document.addEventListener("drop", (event) => {
    if (!onPage(event)) return;
    event.preventDefault();
    byId("rb-drop").classList.remove("rb-over");
    dropped(event.dataTransfer.items);
  });
})();
