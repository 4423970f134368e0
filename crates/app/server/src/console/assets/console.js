// Makes pages live; they are whole without it. No library, no inline code, no state but "paused".
(() => {
  'use strict';
  const body = document.body;
  const skew = Number(body.dataset.now || Date.now()) - Date.now();

  // Times: ages grow, countdowns fall, never below zero.
  const span = (ms) => {
    const s = Math.max(0, Math.floor(ms / 1000));
    if (s < 60) return s + ' s';
    if (s < 3600) return Math.floor(s / 60) + ' min';
    if (s < 86400) return Math.floor(s / 3600) + ' h ' + Math.floor((s % 3600) / 60) + ' min';
    return Math.floor(s / 86400) + ' d ' + Math.floor((s % 86400) / 3600) + ' h';
  };
  const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  const tick = () => {
    const now = Date.now() + skew;
    document.querySelectorAll('time[data-ago]').forEach((t) => say(t, span(now - t.dataset.ago) + ' ago'));
    document.querySelectorAll('time[data-for]').forEach((t) => say(t, span(now - t.dataset.for)));
    document.querySelectorAll('time[data-in]').forEach((t) => {
      const left = t.dataset.in - now;
      say(t, left < 1000 ? 'now' : 'in ' + span(left));
    });
  };

  // Copy: the clipboard API is missing on plain HTTP, so an old way stands behind it.
  const select = (text) => {
    const area = document.createElement('textarea');
    area.value = text;
    area.className = 'sr';
    body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  };
  const copy = async (button) => {
    const text = document.getElementById(button.dataset.copy).textContent;
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {
      done = select(text);
      button.focus();
    }
    button.textContent = done ? 'Copied' : 'Select and copy by hand';
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  };
  document.addEventListener('click', (event) => {
    const button = event.target.closest('button[data-copy]');
    if (button) copy(button);
  });
  const unhide = () => document.querySelectorAll('button[data-copy]').forEach((b) => { b.hidden = false; });
  unhide();

  // A form is sent once; the server knows repetitions anyway.
  document.addEventListener('submit', (event) => {
    if (!event.target.matches('[data-once]')) return;
    setTimeout(() => event.target.querySelectorAll('button').forEach((b) => { b.disabled = true; }), 0);
  });

  if (!body.dataset.live) return;
  const button = document.getElementById('pause');
  const state = document.getElementById('state');
  let paused = sessionStorage.getItem('paused') === '1';
  let source = null;
  let clock = 0;
  let wanted = false;
  let busy = false;
  let free = 0;

  // Takes over what is new and keeps what the reader opened or stands on.
  const take = (fresh) => {
    const open = new Set([...document.querySelectorAll('details[open][id]')].map((d) => d.id));
    const picked = new Set([...document.querySelectorAll('[data-swap] input:checked')].map((i) => i.id));
    const active = document.activeElement;
    const mark = active && active.closest('[data-swap]') && (active.id ? '#' + CSS.escape(active.id) : active.getAttribute('href'));
    document.querySelectorAll('[data-swap]').forEach((old) => {
      const now = fresh.getElementById(old.id);
      if (!now || now.innerHTML === old.innerHTML) return;
      now.querySelectorAll('details[id]').forEach((d) => { d.open = d.open || open.has(d.id); });
      now.querySelectorAll('input[id]').forEach((i) => { i.checked = i.checked || picked.has(i.id); });
      old.replaceChildren(...now.childNodes);
    });
    unhide();
    if (!mark || document.contains(active)) return;
    const again = mark.startsWith('#') ? document.querySelector(mark)
      : [...document.querySelectorAll('[data-swap] a')].find((a) => a.getAttribute('href') === mark);
    if (again) again.focus({ preventScroll: true });
  };

  // At most one request at a time, and a pause of at least a second and four times its length between two.
  const refresh = async () => {
    if (paused || busy || !wanted || document.hidden) return;
    if (Date.now() < free) { setTimeout(refresh, free - Date.now() + 5); return; }
    busy = true;
    wanted = false;
    const begun = Date.now();
    try {
      const response = await fetch(location.href, { cache: 'no-store' });
      const text = await response.text();
      if (response.redirected) location.reload();
      else if (response.ok && !paused) take(new DOMParser().parseFromString(text, 'text/html'));
    } catch { /* The stream says when the node is back. */ }
    free = Date.now() + Math.max(1000, 4 * (Date.now() - begun));
    busy = false;
    refresh();
  };
  const want = () => { wanted = true; refresh(); };

  const start = () => {
    source = new EventSource(body.dataset.live);
    source.onopen = () => say(state, 'live');
    source.onerror = () => say(state, source.readyState === 2 ? 'cut off: reload the page' : 'reconnecting');
    source.addEventListener('changed', want);
    clock = setInterval(tick, 1000);
    tick();
  };
  const stop = () => {
    source.close();
    clearInterval(clock);
    wanted = false;
    say(state, 'paused');
  };
  const show = () => {
    button.setAttribute('aria-pressed', String(paused));
    say(button, paused ? 'Go on' : 'Pause');
  };
  button.hidden = false;
  show();
  if (paused) say(state, 'paused'); else start();
  button.addEventListener('click', () => {
    paused = !paused;
    sessionStorage.setItem('paused', paused ? '1' : '0');
    show();
    if (paused) stop(); else { start(); want(); }
  });
  document.addEventListener('visibilitychange', refresh);
})();
