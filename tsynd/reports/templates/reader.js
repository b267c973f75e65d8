// One step is one image; `told` has the truth of the images to practise on, and of nothing else
const at = id => document.getElementById(id), memory = 'tsynd-' + study.study
const bytes = Uint8Array.from(atob(study.pixels), c => c.charCodeAt(0))
const each = study.width * study.height * study.channels
let state = {reader: '', step: 0, answers: [], finished: false}, question = 0, since = 0

const questions = study.tasks.map(task => task === 'kind'
    ? {task, words: 'Real or synthetic, and how sure are you?', choices: study.levels}
    : {task, words: 'Which finding?', choices: study.classes})

let keeps = true    // does the browser?
function kept() { try { return JSON.parse(localStorage.getItem(memory)) || {} } catch (e) { return {} } }
function keep() { // each reader's answers by name, so that several may use one device and not see each other's
    try { localStorage.setItem(memory, JSON.stringify({...kept(), [state.reader]: state})) } catch (e) { keeps = false }
}
function show(id) { for (const s of ['begin', 'read', 'end']) at(s).hidden = s !== id }

function draw(step) {
    const c = at('image'), w = study.width, h = study.height
    c.width = w; c.height = h
    const picture = new ImageData(w, h), from = step * each
    for (let i = 0; i < w * h; i++) for (let k = 0; k < 4; k++)
        picture.data[4 * i + k] = k === 3 ? 255 : bytes[from + (study.channels === 3 ? 3 * i + k : i)]
    c.getContext('2d').putImageData(picture, 0, 0)
}

function ask() {
    if (state.step >= study.images) return finish()
    show('read'); draw(state.step)
    const practice = study.told.length, q = questions[question]
    at('where').textContent = state.step < practice
        ? `To practise: ${state.step + 1} of ${practice}` : `${state.step - practice + 1} of ${study.images - practice}`
    at('back').hidden = state.step === 0 && question === 0
    at('asked').textContent = q.words; at('told').textContent = ''; at('next').hidden = true
    const box = at('answers'), given = (state.answers[state.step] || {})[q.task]
    box.className = q.task === 'kind' ? '' : 'few'
    box.replaceChildren(...q.choices.map((text, k) => {
        const b = document.createElement('button'), key = document.createElement('small')
        b.textContent = text; key.textContent = k < 9 ? k + 1 : ''
        b.append(key); b.onclick = () => answer(k); b.className = given === k ? 'chosen' : ''
        return b
    }))
    since = Date.now()
}

function answer(k) {
    if (at('read').hidden || !at('next').hidden || k >= questions[question].choices.length) return
    if (Date.now() - since < 150) return        // the second half of a double click
    const one = state.answers[state.step] = {...state.answers[state.step]}
    one[questions[question].task] = k
    one.seconds = Math.round((one.seconds || 0) * 10 + (Date.now() - since) / 100) / 10
    const truth = question === questions.length - 1 ? study.told[state.step] : undefined
    keep()
    if (truth === undefined) return next()
    at('told').textContent = truth
    at('next').hidden = false; at('next').focus()
}

function next() {
    question += 1
    if (question === questions.length) { question = 0; state.step += 1 }
    keep(); ask()
}

function back() {
    if (question > 0) question -= 1
    else if (state.step > 0) { state.step -= 1; question = questions.length - 1 }
    keep(); ask()
}

function exported() {
    const {reader, answers} = state
    return JSON.stringify({format: 'tsynd answers 1', study: study.study, reader, answers})
}

function finish() {
    state.finished = true; keep(); show('end')
    at('text').value = exported()
    if (!study.score) return
    for (const e of document.querySelectorAll('.sending')) e.hidden = true
    at('result').innerHTML = score()
    at('anew').hidden = false
}

at('start').onclick = () => {
    const reader = at('name').value.trim() || 'anonymous', before = kept()
    state = Object.hasOwn(before, reader) ? before[reader] : {reader, step: 0, answers: [], finished: false}
    question = 0
    try { sessionStorage.setItem(memory, reader) } catch (e) { keeps = false }
    keep(); ask()
}
at('anew').onclick = () => { state = {...state, step: 0, answers: [], finished: false}; question = 0; keep(); ask() }
at('next').onclick = next
at('back').onclick = back
at('again').onclick = () => { state.step = study.images - 1; question = questions.length - 1; ask() }
at('save').onclick = () => {
    const a = document.createElement('a')
    a.href = URL.createObjectURL(new Blob([exported()], {type: 'application/json'}))
    a.download = `answers-${state.reader.replace(/[^\w-]+/g, '_')}.json`
    a.click()
}
document.addEventListener('keydown', e => {
    if (e.repeat || at('read').hidden || e.target.tagName === 'INPUT' || e.ctrlKey || e.metaKey || e.altKey) return
    if (e.key >= '1' && e.key <= '9') answer(Number(e.key) - 1)
    else if (e.key === 'Backspace') { e.preventDefault(); back() }
})

try { at('name').value = sessionStorage.getItem(memory) || ''; localStorage.setItem('tsynd', '') } catch (e) { keeps = false }
at('found').textContent = keeps ? 'If you have begun before, give the same name to go on.'
    : 'This browser keeps nothing: answer everything before you close the page.'

// Of a page that scores itself: sensitivity and accuracy, from the truth that it carries
function score() {
    const n = [0, 0], said = [0, 0], half = study.levels.length / 2
    study.score.forEach((synthetic, i) => {
        const a = state.answers[i]
        if (!a) return
        n[synthetic] += 1; said[synthetic] += a.kind >= half
    })
    const z = (k, m) => quantile((k + .5) / (m + 1)), d = z(said[1], n[1]) - z(said[0], n[0])
    const right = said[1] + n[0] - said[0], all = n[0] + n[1]
    return `<p>You were right in <b>${right} of ${all}</b> cases. Your d′ is <b>${d.toFixed(2)}</b>: 0 is guessing, ` +
        `1 is being right in about 7 of 10 cases, and 2 in 8 to 9. You called ${said[1]} of ${n[1]} synthetic ` +
        `and ${said[0]} of ${n[0]} real images synthetic.</p>`
}

function quantile(p) { // of the normal distribution, by bisection
    let lo = -6, hi = 6
    const below = x => { // Abramowitz and Stegun 7.1.26
        const t = 1 / (1 + .3275911 * Math.abs(x) / Math.SQRT2)
        const poly = t * (.254829592 + t * (-.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        const tail = poly * Math.exp(-x * x / 2) / 2
        return x < 0 ? tail : 1 - tail
    }
    for (let i = 0; i < 50; i++) { const m = (lo + hi) / 2; if (below(m) < p) lo = m; else hi = m }
    return (lo + hi) / 2
}
