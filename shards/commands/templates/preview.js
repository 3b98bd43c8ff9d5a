const ink = document.getElementById('ink'), at = document.getElementById('at');
ink.oninput = () => document.documentElement.style.setProperty('--ink', ink.value / 100);
const names = JSON.parse(document.getElementById('names').textContent);
const board = document.createElement('canvas'), pen = board.getContext('2d', {willReadFrequently: true});
function tell(event) {
  const mask = event.target;
  if (board.owner !== mask) {
    board.width = mask.naturalWidth; board.height = mask.naturalHeight;
    pen.drawImage(mask, 0, 0); board.owner = mask;
  }
  const x = Math.floor(event.offsetX * board.width / mask.clientWidth);
  const y = Math.floor(event.offsetY * board.height / mask.clientHeight);
  const [r, g, b, a] = pen.getImageData(x, y, 1, 1).data;
  at.textContent = a ? names[mask.closest('section').id][[r, g, b]] || '' : 'in no mask';
}
document.querySelectorAll('.mosaic .mask').forEach(mask => { mask.onpointermove = mask.onpointerdown = tell; });
window.onload = () => {
  const all = [...document.images], shown = all.filter(image => image.complete && image.naturalWidth > 0);
  document.getElementById('count').textContent = shown.length + ' of ' + all.length + ' pictures shown';
};
